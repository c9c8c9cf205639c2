// Command box is what test pods ask others with: Debian's static busybox cannot
// resolve names in an image without the C library.
//
//	box get URL [COUNT]   the page, COUNT times, a new connection each
//	box sum URL           the MD5 sum of the page
//	box keep URL          the page for ever, a new connection each time; tells of each failure and each fifty answers
//	box lookup NAME       its addresses, a line each
package main

import (
	"context"
	"crypto/md5"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

// timeout bounds each request.
const timeout = 5 * time.Second

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "box:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: box get URL [COUNT] | sum URL | keep URL | lookup NAME")
	}
	switch args[0] {
	case "get":
		count := 1
		if len(args) > 2 {
			var err error
			if count, err = strconv.Atoi(args[2]); err != nil {
				return err
			}
		}
		for range count {
			if err := get(args[1], os.Stdout); err != nil {
				return err
			}
		}
		return nil
	case "sum":
		sum := md5.New()
		if err := get(args[1], sum); err != nil {
			return err
		}
		fmt.Printf("%x  -\n", sum.Sum(nil))
		return nil
	case "keep":
		keep(args[1])
		return nil
	case "lookup":
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		addrs, err := net.DefaultResolver.LookupHost(ctx, args[1])
		for _, a := range addrs {
			fmt.Println(a)
		}
		return err
	default:
		return fmt.Errorf("no such command: %s", args[0])
	}
}

// pace is how often keep asks, and told how many answers it tells of at once.
const (
	pace = 200 * time.Millisecond
	told = 50
)

func keep(url string) {
	answered := 0
	for range time.Tick(pace) {
		if err := get(url, io.Discard); err != nil {
			fmt.Println("failed:", time.Now().Format(time.TimeOnly), err)
			continue
		}
		if answered++; answered%told == 0 {
			fmt.Println("answered:", answered)
		}
	}
}

func get(url string, w io.Writer) error {
	client := &http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close() //nolint:errcheck // only read from
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, answer.Status)
	}
	_, err = io.Copy(w, answer.Body)
	return err
}
