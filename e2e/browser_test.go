package e2e

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"testing"
)

// browser is a headless Chromium that runs no scripts of pages. It is spoken to in the
// DevTools protocol over two pipes: a JSON object after the other, each ended by a zero byte.
type browser struct {
	t       *testing.T
	to      *os.File
	from    *bufio.Reader
	id      int
	session string
	fetched []string // addresses that the page asked for
	logged  []string // what the browser had to say of the page
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("run `make packages` first: %v", err)
	}
	theirIn, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	from, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--hide-scrollbars", "--remote-debugging-pipe", "--user-data-dir="+t.TempDir(), "about:blank")
	cmd.ExtraFiles = []*os.File{theirIn, theirOut} // 3 and 4, as the flag says
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirIn.Close()  //nolint:errcheck // the browser has its own
	theirOut.Close() //nolint:errcheck // the browser has its own
	b := &browser{t: t, to: to, from: bufio.NewReader(from)}
	t.Cleanup(func() {
		to.Close()   //nolint:errcheck // the browser ends when it is closed
		cmd.Wait()   //nolint:errcheck // how it ends says nothing
		from.Close() //nolint:errcheck // only read from
	})
	target := call[struct{ TargetID string }](b, "Target.createTarget", map[string]string{"url": "about:blank"})
	b.session = call[struct{ SessionID string }](b, "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}).SessionID
	for _, domain := range []string{"Page", "Network", "Log"} {
		call[struct{}](b, domain+".enable", nil)
	}
	call[struct{}](b, "Emulation.setScriptExecutionDisabled", map[string]bool{"value": true})
	return b
}

// message is anything that the browser says: an answer to a call, or an event.
type message struct {
	ID     int
	Method string
	Params struct {
		Request struct{ URL string }
		Entry   struct{ Text string }
	}
	Result json.RawMessage
	Error  *struct{ Message string }
}

// receive reads the next message, and keeps what is told of the page.
func (b *browser) receive() message {
	b.t.Helper()
	text, err := b.from.ReadBytes(0)
	if err != nil {
		b.t.Fatalf("chromium: %v", err)
	}
	var m message
	if err := json.Unmarshal(text[:len(text)-1], &m); err != nil {
		b.t.Fatalf("chromium: %v: %s", err, text)
	}
	switch m.Method {
	case "Network.requestWillBeSent":
		b.fetched = append(b.fetched, m.Params.Request.URL)
	case "Log.entryAdded":
		b.logged = append(b.logged, m.Params.Entry.Text)
	}
	return m
}

// call asks for one thing and returns the answer.
func call[T any](b *browser, method string, params any) T {
	b.t.Helper()
	b.id++
	if params == nil {
		params = struct{}{}
	}
	text, err := json.Marshal(map[string]any{"id": b.id, "method": method, "params": params})
	if b.session != "" {
		text, err = json.Marshal(map[string]any{"id": b.id, "method": method, "params": params, "sessionId": b.session})
	}
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.to.Write(append(text, 0)); err != nil {
		b.t.Fatalf("chromium: %s: %v", method, err)
	}
	m := b.receive()
	for m.ID != b.id {
		m = b.receive()
	}
	var result T
	if m.Error != nil {
		b.t.Fatalf("chromium: %s: %s", method, m.Error.Message)
	}
	if err := json.Unmarshal(m.Result, &result); err != nil {
		b.t.Fatal(err)
	}
	return result
}

// screen is how a page is looked at.
type screen struct {
	name          string
	width, height int
	phone         bool
	media, scheme string
}

// show opens a page as on that screen.
func (b *browser) show(page string, s screen) {
	b.t.Helper()
	call[struct{}](b, "Emulation.setDeviceMetricsOverride", map[string]any{"width": s.width, "height": s.height, "deviceScaleFactor": 1, "mobile": s.phone})
	call[struct{}](b, "Emulation.setEmulatedMedia", map[string]any{"media": s.media,
		"features": []map[string]string{{"name": "prefers-color-scheme", "value": s.scheme}}})
	call[struct{}](b, "Page.navigate", map[string]string{"url": "file://" + page})
	for b.receive().Method != "Page.loadEventFired" {
	}
}

// size is the width and height of all that the page has, as it is laid out.
func (b *browser) size() (width, height float64) {
	b.t.Helper()
	m := call[struct {
		CSSContentSize struct{ Width, Height float64 }
	}](b, "Page.getLayoutMetrics", nil)
	return m.CSSContentSize.Width, m.CSSContentSize.Height
}

// picture is the whole page as a PNG.
func (b *browser) picture() []byte {
	b.t.Helper()
	shot := call[struct{ Data string }](b, "Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true})
	png, err := base64.StdEncoding.DecodeString(shot.Data)
	if err != nil {
		b.t.Fatal(err)
	}
	return png
}
