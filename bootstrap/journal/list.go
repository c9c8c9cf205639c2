package journal

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// listMounts returns the mount points strictly below a folder, the outermost first.
func listMounts(ctx context.Context, r host.Reader, below string) ([]string, error) {
	content, err := r.ReadFile(ctx, host.MountTable)
	if err != nil {
		return nil, err
	}
	var points []string
	for lines := bufio.NewScanner(bytes.NewReader(content)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		if point := unescape(fields[4]); strings.HasPrefix(point, below+"/") {
			points = append(points, point)
		}
	}
	return points, nil
}

// unescape undoes the kernel's octal escapes of blanks and backslashes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func listLinks(ctx context.Context, r host.Reader) ([]string, error) {
	var links []struct {
		Name string `json:"ifname"`
	}
	err := query(ctx, r, &links, "ip", "-json", "link", "show")
	list := make([]string, len(links))
	for i, l := range links {
		list[i] = l.Name
	}
	return list, err
}

// listRoutes returns the IPv4 routes into a network. The kernel's own go with their interface.
func listRoutes(ctx context.Context, r host.Reader, within netip.Prefix) ([]string, error) {
	var routes []struct {
		To       string `json:"dst"`
		Protocol string `json:"protocol"`
	}
	if err := query(ctx, r, &routes, "ip", "-json", "-4", "route", "show"); err != nil {
		return nil, err
	}
	var list []string
	for _, rt := range routes {
		to, err := netip.ParsePrefix(rt.To)
		if err != nil || rt.Protocol == "kernel" { // a single address or default
			continue
		}
		if within.Contains(to.Addr()) && to.Bits() >= within.Bits() {
			list = append(list, rt.To)
		}
	}
	return list, nil
}

// address is a single IPv4 address of an interface.
type address struct{ Local, Device string }

// listAddresses returns the single addresses (/32) of all interfaces.
func listAddresses(ctx context.Context, r host.Reader) ([]address, error) {
	var links []struct {
		Name  string `json:"ifname"`
		Addrs []struct {
			Local  string `json:"local"`
			Length int    `json:"prefixlen"`
		} `json:"addr_info"`
	}
	if err := query(ctx, r, &links, "ip", "-json", "address", "show"); err != nil {
		return nil, err
	}
	var list []address
	for _, l := range links {
		for _, a := range l.Addrs {
			if a.Length == 32 && !strings.Contains(a.Local, ":") {
				list = append(list, address{a.Local, l.Name})
			}
		}
	}
	return list, nil
}

// table is one of nftables.
type table struct{ Family, Name string }

func listTables(ctx context.Context, r host.Reader) ([]table, error) {
	var ruleset struct {
		NFTables []struct{ Table *table } `json:"nftables"`
	}
	if err := query(ctx, r, &ruleset, "nft", "--json", "list", "tables"); err != nil {
		return nil, err
	}
	var list []table
	for _, o := range ruleset.NFTables {
		if o.Table != nil {
			list = append(list, *o.Table)
		}
	}
	return list, nil
}

func query(ctx context.Context, r host.Reader, into any, argv ...string) error {
	out, err := r.Query(ctx, argv...)
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(out)) == 0 {
		return nil
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
	}
	return nil
}

// leftovers lists the temporary files of writes that were broken off: beside the
// files that entries name, and any in the folders that are ours alone.
func leftovers(ctx context.Context, r host.Reader, entries []Entry) ([]string, error) {
	marks := map[string][]string{Root: {"."}, Dir: {"."}} // how their names begin, by directory
	for _, e := range entries {
		for _, b := range e.Before {
			if b.Kind == plan.ObjectFile {
				dir := path.Dir(b.Name)
				marks[dir] = append(marks[dir], "."+path.Base(b.Name)+host.TemporaryMark)
			}
		}
	}
	var mu sync.Mutex
	var left []string
	looks, ctx := errgroup.WithContext(ctx)
	for dir, begins := range marks {
		looks.Go(func() error {
			have, err := r.ReadDir(ctx, dir)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			for _, n := range have {
				if strings.Contains(n, host.TemporaryMark) && slices.ContainsFunc(begins, func(mark string) bool { return strings.HasPrefix(n, mark) }) {
					left = append(left, path.Join(dir, n))
				}
			}
			return nil
		})
	}
	err := looks.Wait()
	slices.Sort(left)
	return left, err
}
