// Command schemas writes the OVN database schemas that kube-ovn's controller speaks: those of the distribution may be
// older, and the controller refuses them.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kubeovn/kube-ovn/pkg/ovsdb/ovnnb"
	"github.com/kubeovn/kube-ovn/pkg/ovsdb/ovnsb"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: schemas DIRECTORY")
		os.Exit(2)
	}
	for name, schema := range map[string]any{"ovn-nb": ovnnb.Schema(), "ovn-sb": ovnsb.Schema()} {
		if err := write(filepath.Join(os.Args[1], name+".ovsschema"), schema); err != nil {
			fmt.Fprintf(os.Stderr, "write schema %s: %v\n", name, err)
			os.Exit(1)
		}
	}
}

func write(path string, schema any) error {
	text, err := json.Marshal(schema)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}
