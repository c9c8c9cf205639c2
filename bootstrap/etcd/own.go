package etcd

import (
	"context"
	"crypto/sha256"
	"net"

	"go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/kubewright/kubewright/bootstrap/host"
)

// Connect opens etcd's own client, to the member on a control-plane host and to no other,
// as the health check client whose certificate is on that host below pki.
func Connect(ctx context.Context, r host.Reader, pki string) (*clientv3.Client, error) {
	tls, err := credentials(ctx, r, pki)
	if err != nil {
		return nil, err
	}
	return clientv3.New(clientv3.Config{
		Context:     ctx,
		Endpoints:   []string{own},
		DialTimeout: healthTimeout,
		Logger:      zap.NewNop(), // what it would print is in its errors, too
		TLS:         tls,
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return r.Dial(ctx, "tcp", "127.0.0.1:"+ClientPort)
		})},
	})
}

// Proof tells whether a snapshot that is written to it is whole: it ends with the
// SHA-256 of what comes before.
type Proof struct{ trailing }

// NewProof is one for a snapshot that is still to come.
func NewProof() *Proof { return &Proof{trailing{of: sha256.New()}} }

// Whole tells whether all was written, as etcd sent it.
func (p *Proof) Whole() bool { return p.right() }
