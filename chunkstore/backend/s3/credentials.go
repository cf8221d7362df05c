package s3

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

// roleTimeout bounds one request for a role's credentials.
const roleTimeout = 5 * time.Second

// chain finds credentials: in the environment, the shared files, or a role. Unlike the library's it never goes on anonymously,
// and tells what is wrong with what it found.
type chain struct {
	getenv func(string) string
	role   credentials.Provider
	found  credentials.Provider // nil: not asked yet
}

func newCredentials(getenv func(string) string) *credentials.Credentials {
	return credentials.New(&chain{getenv: getenv, role: &credentials.IAM{Client: &http.Client{Timeout: roleTimeout}}})
}

// RetrieveWithCredContext implements credentials.Provider.
func (c *chain) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	if v, err := c.environment(); err != nil || v.AccessKeyID != "" {
		c.found = &credentials.Static{Value: v}
		return v, err
	}
	v, fileErr := c.files(cc)
	if v.AccessKeyID != "" || fileErr != nil && c.getenv("AWS_PROFILE") != "" {
		return v, fileErr
	}
	const none = "%w in the environment and in the shared files"
	if c.getenv("AWS_EC2_METADATA_DISABLED") == "true" && !c.namesRole() {
		return v, errors.Join(fmt.Errorf(none, ErrNoCredentials), fileErr)
	}
	v, err := c.role.RetrieveWithCredContext(cc)
	if err != nil {
		return credentials.Value{}, errors.Join(fmt.Errorf(none+", and no role: %w", ErrNoCredentials, err), fileErr)
	}
	c.found = c.role
	return v, nil
}

// Retrieve implements credentials.Provider.
func (c *chain) Retrieve() (credentials.Value, error) { return c.RetrieveWithCredContext(nil) }

// IsExpired implements credentials.Provider.
func (c *chain) IsExpired() bool { return c.found == nil || c.found.IsExpired() }

// environment returns the keys in the environment; none when there are none.
func (c *chain) environment() (credentials.Value, error) {
	id, secret := c.first("AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY"), c.first("AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY")
	switch {
	case id == "" && secret == "":
		return credentials.Value{}, nil
	case secret == "":
		return credentials.Value{}, fmt.Errorf("%w: AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not", ErrNoCredentials)
	case id == "":
		return credentials.Value{}, fmt.Errorf("%w: AWS_SECRET_ACCESS_KEY is set, AWS_ACCESS_KEY_ID is not", ErrNoCredentials)
	}
	return credentials.Value{
		AccessKeyID: id, SecretAccessKey: secret, SessionToken: c.getenv("AWS_SESSION_TOKEN"), SignerType: credentials.SignatureV4,
	}, nil
}

// files returns the keys of the profile in the shared files; none when no profile was named and there is no such file or profile.
func (c *chain) files(cc *credentials.CredContext) (credentials.Value, error) {
	profile := c.getenv("AWS_PROFILE")
	p := &credentials.FileAWSCredentials{Profile: profile} // its other variables it looks up itself
	v, err := p.RetrieveWithCredContext(cc)
	missing := errors.Is(err, fs.ErrNotExist) || err == nil && v.AccessKeyID == ""
	switch {
	case missing && profile == "":
		return credentials.Value{}, nil
	case missing:
		return credentials.Value{}, fmt.Errorf("%w: profile %s is not in the shared files, or has no keys", ErrNoCredentials, profile)
	case err != nil:
		return credentials.Value{}, fmt.Errorf("%w: shared files: %w", ErrNoCredentials, err)
	}
	c.found = p
	return v, nil
}

// namesRole reports whether the environment says where a role is to be had.
func (c *chain) namesRole() bool {
	return c.first("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI") != ""
}

// first returns the first of these variables that is set.
func (c *chain) first(names ...string) string {
	for _, name := range names {
		if v := c.getenv(name); v != "" {
			return v
		}
	}
	return ""
}
