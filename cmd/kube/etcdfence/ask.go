package etcdfence

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// load reads who the member is towards others, and whom it trusts.
func load(o options) (credentials.TransportCredentials, error) {
	ca, err := os.ReadFile(o.caFile)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	pair, err := tls.LoadX509KeyPair(o.certFile, o.keyFile)
	if err != nil {
		return nil, err
	}
	return credentials.NewTLS(&tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}), nil
}

// ask asks all others at once who is a member, and returns whether this one is, or else why it
// is out, "" if nobody knows. One answer that has it in is enough to let it start: two clusters
// that contradict each other are not for it to judge.
func ask(ctx context.Context, self identity, others []string, with credentials.TransportCredentials, log *slog.Logger) (member bool, out string) {
	type answer struct {
		from string
		list *etcdserverpb.MemberListResponse
		err  error
	}
	answers := make(chan answer, len(others))
	for _, address := range others {
		go func() {
			list, err := members(ctx, address, with)
			answers <- answer{address, list, err}
		}()
	}
	for range others {
		a := <-answers
		if a.err != nil {
			log.Info("no answer from " + a.from + ": " + status.Convert(a.err).Message())
			continue
		}
		if out = verdictOf(self, a.from, a.list); out == "" {
			return true, ""
		}
	}
	return false, out
}

// members asks one of the others for the list that a quorum stands for. A learner, or one
// without a quorum, does not give it.
func members(ctx context.Context, address string, with credentials.TransportCredentials) (*etcdserverpb.MemberListResponse, error) {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(with))
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // only asked through
	return etcdserverpb.NewClusterClient(conn).MemberList(ctx, &etcdserverpb.MemberListRequest{Linearizable: true})
}

// verdictOf says why a list of members leaves this one out, "" if it does not. A member that was let
// in anew under the same name and address is another one: its data came to it later.
func verdictOf(self identity, from string, list *etcdserverpb.MemberListResponse) string {
	var names []string
	for _, m := range list.GetMembers() {
		names = append(names, m.GetName())
	}
	who := fmt.Sprintf("(%s, says a quorum through %s)", strings.Join(names, ", "), from)
	switch {
	case list.GetHeader().GetClusterId() != self.cluster:
		return fmt.Sprintf("its data are of etcd cluster %x, and the other control-plane hosts are members of another, %x %s",
			self.cluster, list.GetHeader().GetClusterId(), who)
	case !slices.ContainsFunc(list.GetMembers(), func(m *etcdserverpb.Member) bool { return m.GetID() == self.member }):
		return fmt.Sprintf("this member, %x, was taken out of its cluster while it was not running %s", self.member, who)
	}
	return ""
}
