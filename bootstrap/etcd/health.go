package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"time"

	"go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/kubewright/kubewright/bootstrap/host"
)

// Member is one member of etcd as it says it is.
type Member struct {
	Name    string   `json:"name"`
	ID      string   `json:"id"` // hex
	Peers   []string `json:"peers"`
	Clients []string `json:"clients"`
	Learner bool     `json:"learner,omitempty"`
	Leader  bool     `json:"leader"`
	Healthy bool     `json:"healthy"`
	Version string   `json:"version,omitempty"`
	DBSize  int64    `json:"dbSize,omitempty"` // bytes
	Quota   int64    `json:"quota,omitempty"`  // of DBSize
	Trouble string   `json:"trouble,omitempty"`
}

// healthTimeout bounds the question to one member.
const healthTimeout = 3 * time.Second

// Connect opens a client through a control-plane host's connection, as the
// health check client whose certificate is on that host below pki.
func Connect(ctx context.Context, r host.Reader, pki string) (*clientv3.Client, error) {
	read := func(name string) ([]byte, error) { return r.ReadFile(ctx, pki+"/"+name) }
	ca, err := read("ca.crt")
	if err != nil {
		return nil, err
	}
	cert, err := read("healthcheck-client.crt")
	if err != nil {
		return nil, err
	}
	key, err := read("healthcheck-client.key")
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("etcd client certificate: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return clientv3.New(clientv3.Config{
		Context:     ctx,
		Endpoints:   []string{"https://127.0.0.1:" + ClientPort},
		DialTimeout: healthTimeout,
		Logger:      zap.NewNop(), // what it would print is in its errors, too
		TLS:         &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}},
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return r.Dial(ctx, "tcp", "127.0.0.1:"+ClientPort)
		})},
	})
}

// Members lists etcd's members with the health of the one that client is connected to.
func Members(ctx context.Context, client *clientv3.Client) ([]Member, error) {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	list, err := client.MemberList(ctx)
	if err != nil {
		return nil, fmt.Errorf("etcd members: %w", err)
	}
	status, err := client.Status(ctx, client.Endpoints()[0])
	if err != nil {
		return nil, fmt.Errorf("etcd status: %w", err)
	}
	members := make([]Member, len(list.Members))
	for i, m := range list.Members {
		members[i] = Member{
			Name: m.Name, ID: fmt.Sprintf("%x", m.ID), Peers: m.PeerURLs, Clients: m.ClientURLs,
			Learner: m.IsLearner, Leader: m.ID == status.Leader,
		}
		if m.ID == status.Header.MemberId {
			members[i].Version, members[i].DBSize, members[i].Quota = status.Version, status.DbSize, status.DbSizeQuota
			members[i].Healthy = len(status.Errors) == 0 && status.Leader != 0
			for _, e := range status.Errors {
				members[i].Trouble = e
			}
		}
	}
	return members, nil
}
