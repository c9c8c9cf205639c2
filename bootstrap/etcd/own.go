package etcd

import (
	"context"
	"net"
	"time"

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

// Self asks a host's own member how it sees its cluster, whether or not it has a quorum.
type Self interface {
	// Look fails if the member does not answer: it does not run, or is still starting.
	Look(ctx context.Context, r host.Reader) (View, error)
}

// View is what one member knows without asking the others.
type View struct {
	Cluster string   // the ID of its cluster; a recovered cluster keeps it, a restored one has another
	ID      string   // its own, as Members has it; the others may have taken it out
	Members []string // their IDs
	Leader  string   // the ID of the one that it follows, as Members has it; "" if there is none
	Applied uint64   // raft's index of the last entry that is in its data
}

// Own is the Self of a host whose health check client's certificate is below PKI.
type Own struct{ PKI string }

var _ Self = Own{}

// ownTime bounds a question to the host's own member.
const ownTime = 5 * time.Second

// Look asks the member itself, and nobody else.
func (o Own) Look(ctx context.Context, r host.Reader) (View, error) {
	ctx, cancel := context.WithTimeout(ctx, ownTime)
	defer cancel()
	client, err := Connect(ctx, r, o.PKI)
	if err != nil {
		return View{}, err
	}
	defer client.Close() //nolint:errcheck // only read through
	list, err := client.MemberList(ctx, clientv3.WithSerializable())
	if err != nil {
		return View{}, err
	}
	status, err := client.Status(ctx, own)
	if err != nil {
		return View{}, err
	}
	v := View{Cluster: hexID(list.Header.ClusterId), ID: hexID(list.Header.MemberId), Applied: status.RaftAppliedIndex}
	for _, m := range list.Members {
		v.Members = append(v.Members, hexID(m.ID))
	}
	if status.Leader != 0 {
		v.Leader = hexID(status.Leader)
	}
	return v, nil
}
