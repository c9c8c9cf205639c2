// Package redact takes secrets out of text that leaves a host for other eyes:
// journals, configuration, API objects. It works on lines and knows secrets by
// their form (PEM keys, JSON web tokens, bootstrap and bearer tokens, age keys,
// password hashes) and by what they are called (client-key-data, DB_PASSWORD=,
// --token). What is in doubt is taken out: a lost word is better than a lost key.
package redact

import (
	"bufio"
	"errors"
	"io"
	"regexp"
	"strings"
)

// Mark stands where a secret was.
const Mark = "[secret]"

// Copy copies text from r to w, a line at a time, without its secrets.
func Copy(w io.Writer, r io.Reader) error {
	var s state
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadString('\n')
		if line != "" {
			text, ended := strings.CutSuffix(line, "\n")
			clean, keep := s.line(text)
			if ended {
				clean += "\n"
			}
			if keep {
				if _, err := io.WriteString(w, clean); err != nil {
					return err
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Text returns text without its secrets.
func Text(text string) string {
	var b strings.Builder
	Copy(&b, strings.NewReader(text)) //nolint:errcheck // neither end can fail
	return b.String()
}

// Lines is Text for lines without their ends, of which a PEM key may drop some.
func Lines(lines []string) []string {
	if len(lines) == 0 {
		return nil
	}
	return strings.Split(Text(strings.Join(lines, "\n")), "\n")
}

// name matches what secrets are called, as part of a longer word.
const name = `[\w.\-/]*(?:passw(?:or)?d|passphrase|passwd|secret|token|credential|authorization|cookie|` +
	`api[_-]?key|private[_-]?key|access[_-]?key|encryption[_-]?key|signing[_-]?key|client-key-data|key-data)[\w.\-]*`

// value is what stands behind a name: quoted, or up to the next blank, comma or bracket.
const value = `(?:\\+"` + inEscaped + `(?:\\+")?|"(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s,;&}\]"']+)`

// inEscaped is what stands in quotes that are escaped themselves.
const inEscaped = `(?:[^"\\]|\\{2,}.)*`

// forms are secrets by what they look like. The first group, if there is one, stays.
var forms = []*regexp.Regexp{
	regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|$)`),
	regexp.MustCompile(`LS0tLS1CRUdJTi[A-Za-z0-9+/=_-]*`),                            // base64 of -----BEGIN
	regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}\.?[A-Za-z0-9_-]*`), // a JSON web token
	regexp.MustCompile(`\b[a-z0-9]{6}\.[a-z0-9]{16}\b`),                              // a bootstrap token
	regexp.MustCompile(`(?i)\bAGE-SECRET-KEY-[0-9A-Z-]+`),                            // age
	regexp.MustCompile(`(?i)(\b(?:bearer|basic) +)[A-Za-z0-9._~+/=-]{8,}`),           // HTTP
	regexp.MustCompile(`(://[^/\s:@]+:)[^/\s@]+(?:@)`),                               // a URL with a password
	regexp.MustCompile(`\$(?:1|2[abxy]?|5|6|7|y|gy|argon2\w*)\$[^\s:"']+`),           // a password's hash
	regexp.MustCompile(`(^|\s)[A-Za-z0-9+/]{64}$`),                                   // the middle of a PEM block whose beginning was cut off
	regexp.MustCompile(`\b(?:AKIA|ASIA)[A-Z0-9]{16}\b`),
	regexp.MustCompile(`\bgh[pousr]_[A-Za-z0-9]{30,}`),
}

var (
	// quotedPair is "DB_PASSWORD=two words", as in systemd's Environment=.
	quotedPair = regexp.MustCompile(`(?i)(["']` + name + `=)[^"'\\]+(["'])`)
	pair       = regexp.MustCompile(`(?i)(` + name + `\\?["']?\s*(?:=|:=|:)\s*)(` + value + `)`)
	// separate is --password value.
	separate = regexp.MustCompile(`(?i)(--?` + name + `["']?[\s,]+["']?)([^\s\-\\"',][^\s"',]*)`)
	// block is a YAML key whose value is on the lines below.
	block = regexp.MustCompile(`(?i)^(\s*(?:- )?)["']?` + name + `["']?\s*:\s*[|>][-+0-9]*\s*$`)
	// named is the first half of a name and a value in two fields of YAML or JSON.
	named = regexp.MustCompile(`(?i)^\s*(?:- )?["']?(?:name|key)["']?\s*:\s*["']?` + name + `["']?,?\s*$`)
	// inline is both halves on one line of JSON.
	inline = regexp.MustCompile(`(?i)("(?:name|key)"\s*:\s*"` + name + `"\s*,\s*"value"\s*:\s*)"(?:[^"\\]|\\.)*"`)
	// inlineEscaped is the same in JSON that is quoted.
	inlineEscaped = regexp.MustCompile(`(?i)(\\+"(?:name|key)\\+"\s*:\s*\\+"` + name + `\\+"\s*,\s*\\+"value\\+"\s*:\s*\\+")` + inEscaped)
	// field is the second half.
	field = regexp.MustCompile(`^(\s*["']?value["']?\s*:\s*).*$`)
	// flag is one whose value is the next line: a list in YAML or JSON, a unit's command line.
	flag = regexp.MustCompile(`(?i)^\s*(?:- )?["']?--?` + name + `["']?,?\s*\\?$`)
	// item is the value of flag.
	item = regexp.MustCompile(`^(\s*(?:- )?["']?)[^\s\-\\"'][^\s"']*`)

	pemBegin = regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----`)
	pemEnd   = regexp.MustCompile(`-----END [A-Z0-9 ]*PRIVATE KEY-----`)
	// harmless are names of things beside secrets, and values that cannot be one.
	harmlessName  = regexp.MustCompile(`(?i)(?:name|file|path|dir|ttl|expiration|kubeconfig|mode|strategy|policy|mounts?|controller|cleaner|tokenreviews?|secrets)["'\\]?\s*(?:=|:=|:)\s*$`)
	harmlessValue = regexp.MustCompile(`^["'\\]*(?:true|false|null|nil|none|\d{1,4}|\{|\[|\[secret\]|[|>][-+0-9]*(?:\\n)?)["'\\]*$`)
)

// state is what the lines before mean for the next one.
type state struct {
	inKey  bool // of a PEM block
	indent int  // of the key of a YAML block that is secret, -1: none
	block  bool
	named  bool // a name without its value yet
	flag   bool // likewise, of a flag
}

// line returns a line without its secrets; a line that is inside one is not kept.
// What it quotes with its line ends escaped is taken apart likewise.
func (s *state) line(text string) (clean string, keep bool) {
	clean, keep = s.plain(text)
	const escaped = `\n`
	if !keep || !strings.Contains(clean, escaped) {
		return clean, keep
	}
	var quoted state
	var kept []string
	for part := range strings.SplitSeq(clean, escaped) {
		if c, keep := quoted.plain(part); keep {
			kept = append(kept, c)
		}
	}
	return strings.Join(kept, escaped), true
}

func (s *state) plain(text string) (clean string, keep bool) {
	if s.inKey {
		if end := pemEnd.FindStringIndex(text); end != nil {
			s.inKey = false
			return s.plain(text[end[1]:])
		}
		return "", false
	}
	if s.block {
		trimmed := strings.TrimLeft(text, " ")
		if trimmed == "" || len(text)-len(trimmed) > s.indent {
			return "", false
		}
		s.block = false
	}
	if begin := pemBegin.FindStringIndex(text); begin != nil && !pemEnd.MatchString(text[begin[1]:]) && !strings.Contains(text[begin[1]:], `\n`) {
		s.inKey = true
		return text[:begin[0]] + Mark, true
	}
	if m := block.FindStringSubmatch(text); m != nil {
		s.block, s.indent = true, len(m[1])
		return text[:strings.LastIndexAny(text, "|>")] + Mark, true
	}
	if s.named && field.MatchString(text) {
		text = field.ReplaceAllString(text, "${1}"+Mark)
	}
	if s.flag {
		text = item.ReplaceAllString(text, "${1}"+Mark)
	}
	s.named, s.flag = named.MatchString(text), flag.MatchString(text)
	return words(text), true
}

// words takes out what can be told from one line alone.
func words(text string) string {
	for _, f := range forms {
		if f.NumSubexp() == 0 {
			text = f.ReplaceAllString(text, Mark)
		} else {
			text = f.ReplaceAllString(text, "${1}"+Mark)
		}
	}
	text = inline.ReplaceAllString(text, `${1}"`+Mark+`"`)
	text = inlineEscaped.ReplaceAllString(text, "${1}"+Mark)
	text = quotedPair.ReplaceAllString(text, "${1}"+Mark+"${2}")
	text = pair.ReplaceAllStringFunc(text, func(match string) string {
		m := pair.FindStringSubmatch(match)
		if harmlessName.MatchString(m[1]) || harmlessValue.MatchString(m[2]) {
			return match
		}
		return m[1] + quoted(m[2])
	})
	return separate.ReplaceAllString(text, "${1}"+Mark)
}

// quoted is the mark in the quotes of what it replaces, so that JSON stays JSON.
func quoted(value string) string {
	q := value[:len(value)-len(strings.TrimLeft(value, `\`))]
	if rest := value[len(q):]; rest != "" && (rest[0] == '"' || rest[0] == '\'') {
		return q + rest[:1] + Mark + q + rest[:1]
	}
	return Mark
}
