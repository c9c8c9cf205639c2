package cluster

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubewright/kubewright/bootstrap/plan"
)

const (
	// tokenTTL is how long a join token lives if nobody removes it: longer than a
	// join may take, short enough to be of no use to whoever finds it.
	tokenTTL = 30 * time.Minute
	// BootstrapGroup is the group of nodes that join; addons gives it its rights.
	BootstrapGroup = "system:bootstrappers:kubewright:default-node-token"
)

// Token is a bootstrap token. It does not print its secret.
type Token struct {
	id, secret string
}

// NewToken returns a random token.
func NewToken() Token {
	// rand.Text is base32: 26 letters of which the token's alphabet has the lower-case forms.
	text := lower(rand.Text())
	return Token{id: text[:6], secret: text[6:22]}
}

func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// Bearer is what a client authenticates with: a secret.
func (t Token) Bearer() string { return t.id + "." + t.secret }

// String is the public half.
func (t Token) String() string { return t.id }

func (t Token) secretName() string { return "bootstrap-token-" + t.id }

// CreateToken lets nodes join by a token until RemoveToken, or for half an hour.
type CreateToken struct {
	Token Token
}

var _ plan.Action[Reader, Writer] = CreateToken{}

func (a CreateToken) Check(ctx context.Context, r Reader) (plan.Diff, error) {
	exists, err := tokenExists(ctx, r, a.Token)
	if err != nil || exists {
		return nil, err
	}
	return a.Foresee(), nil
}

// Foresee: a token is new by its nature. Its name is random, so that it is not told.
func (a CreateToken) Foresee() plan.Diff {
	return plan.Diff{{Verb: plan.Create, Kind: plan.ObjectAPI, Object: tokenObject, Detail: "a join token that lives for minutes"}}
}

// tokenObject is what a plan calls a token's Secret.
const tokenObject = "Secret kube-system/bootstrap-token"

func (a CreateToken) Apply(ctx context.Context, w Writer) error {
	kube, err := w.Kubernetes(ctx)
	if err != nil {
		return err
	}
	_, err = kube.CoreV1().Secrets(metav1.NamespaceSystem).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: a.Token.secretName(), Namespace: metav1.NamespaceSystem,
			Labels: map[string]string{"app.kubernetes.io/managed-by": "kubewright"}},
		Type: corev1.SecretTypeBootstrapToken,
		StringData: map[string]string{
			"description":                    "nodes that kubewright is joining",
			"token-id":                       a.Token.id,
			"token-secret":                   a.Token.secret,
			"expiration":                     time.Now().Add(tokenTTL).UTC().Format(time.RFC3339),
			"usage-bootstrap-authentication": "true",
			"auth-extra-groups":              BootstrapGroup,
		},
	}, metav1.CreateOptions{FieldManager: FieldManager})
	if err != nil {
		return fmt.Errorf("create join token: %w", err)
	}
	return nil
}

// RemoveToken ends the token's life once no node needs it.
type RemoveToken struct {
	Token Token
}

var _ plan.Action[Reader, Writer] = RemoveToken{}

func (a RemoveToken) Check(ctx context.Context, r Reader) (plan.Diff, error) {
	exists, err := tokenExists(ctx, r, a.Token)
	if err != nil || !exists {
		return nil, err
	}
	return a.Foresee(), nil
}

// Foresee: a token that was made is removed.
func (a RemoveToken) Foresee() plan.Diff {
	return plan.Diff{{Verb: plan.Delete, Kind: plan.ObjectAPI, Object: tokenObject}}
}

func (a RemoveToken) Apply(ctx context.Context, w Writer) error {
	kube, err := w.Kubernetes(ctx)
	if err != nil {
		return err
	}
	err = kube.CoreV1().Secrets(metav1.NamespaceSystem).Delete(ctx, a.Token.secretName(), metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove join token: %w", err)
	}
	return nil
}

func tokenExists(ctx context.Context, r Reader, t Token) (bool, error) {
	kube, err := r.Kubernetes(ctx)
	if err != nil {
		return false, err
	}
	_, err = kube.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, t.secretName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}
