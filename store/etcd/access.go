package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/orchestrate-go/orchestrate/identity"
)

// Access keeps etcd's own access control in step with a fleet's members: each is
// a user by the name in its certificate. Control planes may do everything; every
// other member has a role of its own. It is an [identity.Granter].
type Access struct {
	store  *Store
	rights func(identity.ID) (read, write []string)
}

var _ identity.Granter = (*Access)(nil)

// Access returns the access control of the store's etcd. Rights are the keys,
// without the store's prefix, that a member reads and writes; one that ends in a
// slash stands for all that begin with it:
//
//	access := s.Access(func(id identity.ID) (read, write []string) {
//		return orchestrate.NodeKeys(id.Name)
//	})
func (s *Store) Access(rights func(identity.ID) (read, write []string)) *Access {
	return &Access{s, rights}
}

// Enable turns access control on. From then on etcd takes calls only from those
// whom it has been told of; operators, of which there must be one, may do
// everything. It needs servers that ask clients for a certificate. It is done
// again without harm.
func (a *Access) Enable(ctx context.Context, operators ...identity.ID) error {
	if len(operators) == 0 {
		return errors.New("enable etcd's access control: name an operator, such as the control plane that calls this")
	}
	client := a.store.client
	// etcd wants this user to exist. Without a password nobody can be it who has
	// no certificate of that name, and members' names have a colon.
	err := a.make(ctx, "root", "root")
	for _, id := range operators {
		err = errors.Join(err, a.make(ctx, id.String(), "root"))
	}
	if err != nil {
		return a.failed("enable access control", err)
	}
	if _, err := client.AuthEnable(ctx); err != nil {
		return a.failed("enable access control", err)
	}
	return nil
}

// make makes a user and a role, and gives one the other.
func (a *Access) make(ctx context.Context, user, role string) error {
	client := a.store.client
	if _, err := client.RoleAdd(ctx, role); !is(err, rpctypes.ErrRoleAlreadyExist) && err != nil {
		return err
	}
	_, err := client.UserAddWithOptions(ctx, user, "", &clientv3.UserAddOptions{NoPassword: true})
	if !is(err, rpctypes.ErrUserAlreadyExist) && err != nil {
		return err
	}
	_, err = client.UserGrantRole(ctx, user, role)
	return err
}

// Grant makes a member a user, with the rights that it is to have and no others.
func (a *Access) Grant(ctx context.Context, id identity.ID) error {
	if id.Role == identity.Control {
		return a.failed("grant "+id.String(), a.make(ctx, id.String(), "root"))
	}
	if err := a.grant(ctx, id); err != nil {
		return a.failed("grant "+id.String(), err)
	}
	return nil
}

func (a *Access) grant(ctx context.Context, id identity.ID) error {
	client, role := a.store.client, id.String()
	if _, err := client.RoleAdd(ctx, role); !is(err, rpctypes.ErrRoleAlreadyExist) && err != nil {
		return err
	}
	type span struct{ key, end string }
	want := map[span]clientv3.PermissionType{}
	read, write := a.rights(id)
	for _, key := range read {
		key, end := a.span(key)
		want[span{key, end}] = clientv3.PermissionType(clientv3.PermRead)
	}
	for _, key := range write {
		key, end := a.span(key)
		want[span{key, end}] = clientv3.PermissionType(clientv3.PermReadWrite)
	}
	have, err := client.RoleGet(ctx, role)
	if err != nil {
		return err
	}
	for _, p := range have.Perm {
		s := span{string(p.Key), string(p.RangeEnd)}
		if kind, wanted := want[s]; wanted && kind == clientv3.PermissionType(p.PermType) {
			delete(want, s)
		} else if !wanted { // of an earlier version of the rights
			if _, err := client.RoleRevokePermission(ctx, role, s.key, s.end); err != nil {
				return err
			}
		}
	}
	for s, kind := range want {
		if _, err := client.RoleGrantPermission(ctx, role, s.key, s.end, kind); err != nil {
			return err
		}
	}
	return a.make(ctx, role, role)
}

// span is the range of a right in etcd.
func (a *Access) span(key string) (start, end string) {
	full := a.store.opts.Prefix + key
	if !strings.HasSuffix(key, "/") {
		return full, ""
	}
	return full, clientv3.GetPrefixRangeEnd(full)
}

// Revoke removes a member from etcd's users: its next call is refused. Servers of
// package embed end its watches too; others tell a watch that it has open of
// changes for as long as its connection lasts.
func (a *Access) Revoke(ctx context.Context, id identity.ID) error {
	client := a.store.client
	_, err := client.UserDelete(ctx, id.String())
	if is(err, rpctypes.ErrUserNotFound) {
		err = nil
	}
	if err == nil && id.Role != identity.Control {
		if _, err = client.RoleDelete(ctx, id.String()); is(err, rpctypes.ErrRoleNotFound) {
			err = nil
		}
	}
	return a.failed("revoke "+id.String(), err)
}

// failed is err as this package tells it.
func (a *Access) failed(op string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: fmt.Sprintf("%s in etcd", op), Kind: kindOf(err), Err: err}
}
