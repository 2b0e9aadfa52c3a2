// A kubelet's side of the device plugin interface with the library that the kubelet uses, for one resource: takes its
// registration, calls everything, and prints what came back. Usage: grpc-go DIRECTORY RESOURCE
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const patience = 20 * time.Second

// report is what the test compares.
type report struct {
	Register    *api.RegisterRequest
	Options     *api.DevicePluginOptions
	Authorities map[string]string
	Devices     int
	FirstDevice *api.Device
	SecondList  int
	Allocated   *api.AllocateResponse
	Refused     string
	Preferred   []string
	PreStarted  bool
	NotStarted  string
}

type registrar struct {
	api.UnimplementedRegistrationServer
	directory string
	requests  chan *api.RegisterRequest
}

// Register calls back before it answers, as the kubelet does.
func (r *registrar) Register(ctx context.Context, request *api.RegisterRequest) (*api.Empty, error) {
	connection, err := dial(filepath.Join(r.directory, request.Endpoint), "localhost")
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	if _, err := api.NewDevicePluginClient(connection).GetDevicePluginOptions(ctx, &api.Empty{}); err != nil {
		return nil, err
	}
	r.requests <- request
	return &api.Empty{}, nil
}

func main() {
	if len(os.Args) != 3 {
		fail(errors.New("usage: grpc-go DIRECTORY RESOURCE"))
	}
	seen, err := play(os.Args[1], os.Args[2])
	if err != nil {
		fail(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(seen); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func play(directory, resource string) (*report, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	listener, err := net.Listen("unix", filepath.Join(directory, "kubelet.sock"))
	if err != nil {
		return nil, err
	}
	r := &registrar{directory: directory, requests: make(chan *api.RegisterRequest, 16)}
	server := grpc.NewServer()
	api.RegisterRegistrationServer(server, r)
	go server.Serve(listener)
	defer server.Stop()
	var request *api.RegisterRequest
	select {
	case request = <-r.requests:
	case <-ctx.Done():
		return nil, errors.New("nobody registered")
	}
	seen := &report{Register: request, Authorities: authorities(ctx, filepath.Join(directory, request.Endpoint))}
	connection, err := dial(filepath.Join(directory, request.Endpoint), "localhost")
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	return seen, calls(ctx, api.NewDevicePluginClient(connection), resource, seen)
}

// authorities tries what clients of different ages put into `:authority`.
func authorities(ctx context.Context, socket string) map[string]string {
	outcomes := map[string]string{}
	for _, authority := range []string{"localhost", "", "%2Fvar%2Flib%2Fkubelet", "kubelet.example.com:443"} {
		connection, err := dial(socket, authority)
		if err == nil {
			_, err = api.NewDevicePluginClient(connection).GetDevicePluginOptions(ctx, &api.Empty{})
			connection.Close()
		}
		outcomes[authority] = outcome(err)
	}
	return outcomes
}

func calls(ctx context.Context, plugin api.DevicePluginClient, resource string, seen *report) error {
	var err error
	if seen.Options, err = plugin.GetDevicePluginOptions(ctx, &api.Empty{}); err != nil {
		return fmt.Errorf("options: %w", err)
	}
	// Both stay open: a plugin that loses its last stream unasked registers again.
	for _, count := range []*int{&seen.Devices, &seen.SecondList} {
		stream, err := plugin.ListAndWatch(ctx, &api.Empty{})
		if err != nil {
			return fmt.Errorf("list: %w", err)
		}
		list, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("first list: %w", err)
		}
		*count, seen.FirstDevice = len(list.Devices), list.Devices[0]
	}
	id := func(slot int) string { return fmt.Sprintf("%sMvp%d", resource, slot) }
	allocate := func(ids ...string) (*api.AllocateResponse, error) {
		containers := []*api.ContainerAllocateRequest{{DevicesIds: ids}}
		return plugin.Allocate(ctx, &api.AllocateRequest{ContainerRequests: containers})
	}
	if seen.Allocated, err = allocate(id(1), id(2)); err != nil {
		return fmt.Errorf("allocate: %w", err)
	}
	_, err = allocate(id(1), "nonsense")
	seen.Refused = outcome(err)
	preferred, err := plugin.GetPreferredAllocation(ctx, &api.PreferredAllocationRequest{
		ContainerRequests: []*api.ContainerPreferredAllocationRequest{{
			AvailableDeviceIDs:   []string{id(5), id(4), id(3)},
			MustIncludeDeviceIDs: []string{id(5)},
			AllocationSize:       2,
		}},
	})
	if err != nil {
		return fmt.Errorf("preferred: %w", err)
	}
	seen.Preferred = preferred.ContainerResponses[0].DeviceIDs
	if _, err = plugin.PreStartContainer(ctx, &api.PreStartContainerRequest{DevicesIds: []string{id(1)}}); err != nil {
		return fmt.Errorf("pre-start: %w", err)
	}
	seen.PreStarted = true
	_, err = plugin.PreStartContainer(ctx, &api.PreStartContainerRequest{DevicesIds: []string{id(999)}})
	seen.NotStarted = outcome(err)
	return nil
}

func outcome(err error) string {
	return fmt.Sprintf("%s: %s", status.Code(err), status.Convert(err).Message())
}

// dial connects with this authority, or with the library's own for an address of a unix socket.
func dial(socket, authority string) (*grpc.ClientConn, error) {
	if authority == "" {
		return grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	return grpc.NewClient("passthrough:///"+socket,
		grpc.WithAuthority(authority),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}),
	)
}
