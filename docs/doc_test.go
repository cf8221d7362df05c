// Package docs_test holds the pages in this folder against the code: format.md through a second reader that was written from
// it alone, and the direction of imports that architecture.md draws.
package docs_test
