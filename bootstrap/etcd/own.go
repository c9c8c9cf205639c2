package etcd

import (
	"context"
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
