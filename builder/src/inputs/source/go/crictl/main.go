// SPDX-License-Identifier: MIT OR Apache-2.0

// Crictl is a small client of the container runtime interface, version v1alpha2. It has the commands that kubeadm 1.20
// runs (cmd/kubeadm/app/util/runtime/runtime.go) and a few to look around with, spelt and answered as in cri-tools'
// crictl. It is not cri-tools: what it lacks, it refuses.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1alpha2"
	"sigs.k8s.io/yaml"
)

const (
	defaultEndpoint = "unix:///run/containerd/containerd.sock"
	defaultConfig   = "/etc/crictl.yaml"
	// The kubelet's limit (pkg/kubelet/cri/remote/utils.go): a list of many containers is larger than gRPC's 4 MiB.
	maxMessage = 16 * 1024 * 1024
)

// version is set by the linker.
var version = "unknown"

const usage = `usage: crictl [options] command [arguments]

commands:
  info                   show the runtime's status
  version                show the runtime's version
  pods [-q]              list sandboxes
  ps [-a] [-q]           list running containers, or all
  images [-q]            list images
  inspecti IMAGE...      show images; fail if one is absent
  pull IMAGE             pull an image
  stopp POD...           stop sandboxes
  rmp [-f] POD...        remove sandboxes

options:
`

// settings are the keys of cri-tools' configuration file that apply here.
type settings struct {
	RuntimeEndpoint string `json:"runtime-endpoint"`
	ImageEndpoint   string `json:"image-endpoint"`
	Timeout         int    `json:"timeout"`
}

// client connects when a command first asks for one of the two services, so that a usage error needs no runtime.
type client struct {
	runtimeEndpoint, imageEndpoint string
	timeout                        time.Duration
}

type command func(c client, arguments []string) error

var commands = map[string]command{
	"info": info, "version": showVersion, "pods": pods, "ps": containers, "images": images,
	"inspecti": inspectImages, "pull": pull, "stopp": stopPods, "rmp": removePods,
}

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, pflag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "crictl:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	options := pflag.NewFlagSet("crictl", pflag.ContinueOnError)
	options.SetInterspersed(false)
	options.Usage = func() { fmt.Fprint(os.Stderr, usage, options.FlagUsages()) }
	runtimeEndpoint := options.StringP("runtime-endpoint", "r", os.Getenv("CONTAINER_RUNTIME_ENDPOINT"), "socket of the runtime service")
	imageEndpoint := options.StringP("image-endpoint", "i", os.Getenv("IMAGE_SERVICE_ENDPOINT"), "socket of the image service (default the runtime's)")
	timeout := options.DurationP("timeout", "t", 0, "how long to wait for the connection (default 10s)")
	config := options.StringP("config", "c", defaultConfig, "configuration file")
	showOwn := options.BoolP("version", "v", false, "show the version of this program")
	if err := options.Parse(arguments); err != nil {
		return err
	}
	if *showOwn {
		fmt.Println("crictl version", version, "(imgbuild)")
		return nil
	}
	if options.NArg() == 0 {
		options.Usage()
		return errors.New("no command given")
	}
	chosen, known := commands[options.Arg(0)]
	if !known {
		return fmt.Errorf("unknown command %q (see crictl --help)", options.Arg(0))
	}

	var file settings
	content, err := os.ReadFile(*config)
	if err == nil {
		err = yaml.Unmarshal(content, &file)
	} else if os.IsNotExist(err) && !options.Changed("config") {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("reading configuration %s: %w", *config, err)
	}
	c := client{timeout: *timeout}
	c.runtimeEndpoint = first(*runtimeEndpoint, file.RuntimeEndpoint, defaultEndpoint)
	c.imageEndpoint = first(*imageEndpoint, file.ImageEndpoint, c.runtimeEndpoint)
	if c.timeout <= 0 {
		c.timeout = time.Duration(file.Timeout) * time.Second
	}
	if c.timeout <= 0 {
		c.timeout = 10 * time.Second
	}
	return chosen(c, options.Args()[1:])
}

func first(candidates ...string) string {
	for _, candidate := range candidates {
		if candidate != "" {
			return candidate
		}
	}
	return ""
}

func (c client) connect(endpoint string) (*grpc.ClientConn, error) {
	path := strings.TrimPrefix(endpoint, "unix://")
	if !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("endpoint %q is not a unix socket", endpoint)
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	connection, err := grpc.DialContext(ctx, path, grpc.WithInsecure(), grpc.WithBlock(), grpc.FailOnNonTempDialError(true),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}))
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", endpoint, err)
	}
	return connection, nil
}

func (c client) runtime() (cri.RuntimeServiceClient, error) {
	connection, err := c.connect(c.runtimeEndpoint)
	return cri.NewRuntimeServiceClient(connection), err
}

func (c client) images() (cri.ImageServiceClient, error) {
	connection, err := c.connect(c.imageEndpoint)
	return cri.NewImageServiceClient(connection), err
}

// parse reads a command's own options and checks how many arguments are left: least to most, or any number if most < 0.
func parse(name string, arguments []string, least, most int, declare func(*pflag.FlagSet)) ([]string, error) {
	options := pflag.NewFlagSet("crictl "+name, pflag.ContinueOnError)
	if declare != nil {
		declare(options)
	}
	if err := options.Parse(arguments); err != nil {
		return nil, err
	}
	if count := options.NArg(); count < least || (most >= 0 && count > most) {
		return nil, fmt.Errorf("%s: wrong number of arguments: %d (see crictl --help)", name, count)
	}
	return options.Args(), nil
}

// printJSON writes an answer with the runtime's own details, which are JSON where the runtime made them so.
func printJSON(answer map[string]interface{}, details map[string]string) error {
	for key, value := range details {
		if json.Valid([]byte(value)) {
			answer[key] = json.RawMessage(value)
		} else {
			answer[key] = value
		}
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(answer)
}

// printTable writes tab-separated rows as aligned columns.
func printTable(write func(io.Writer)) error {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	write(table)
	return table.Flush()
}

func printLines(lines []string) error {
	for _, line := range lines {
		if _, err := fmt.Println(line); err != nil {
			return err
		}
	}
	return nil
}

func short(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	if len(id) > 13 {
		return id[:13]
	}
	return id
}

func created(nanoseconds int64) string {
	return time.Unix(0, nanoseconds).UTC().Format(time.RFC3339)
}

func info(c client, arguments []string) error {
	if _, err := parse("info", arguments, 0, 0, nil); err != nil {
		return err
	}
	service, err := c.runtime()
	if err != nil {
		return err
	}
	answer, err := service.Status(context.Background(), &cri.StatusRequest{Verbose: true})
	if err != nil {
		return fmt.Errorf("getting the runtime's status: %w", err)
	}
	conditions := []map[string]interface{}{}
	for _, condition := range answer.GetStatus().GetConditions() {
		conditions = append(conditions, map[string]interface{}{
			"type": condition.Type, "status": condition.Status, "reason": condition.Reason, "message": condition.Message,
		})
	}
	status := map[string]interface{}{"conditions": conditions}
	return printJSON(map[string]interface{}{"status": status}, answer.GetInfo())
}

func showVersion(c client, arguments []string) error {
	if _, err := parse("version", arguments, 0, 0, nil); err != nil {
		return err
	}
	service, err := c.runtime()
	if err != nil {
		return err
	}
	answer, err := service.Version(context.Background(), &cri.VersionRequest{})
	if err != nil {
		return fmt.Errorf("getting the runtime's version: %w", err)
	}
	_, err = fmt.Printf("Version:  %s\nRuntimeName:  %s\nRuntimeVersion:  %s\nRuntimeApiVersion:  %s\n",
		answer.Version, answer.RuntimeName, answer.RuntimeVersion, answer.RuntimeApiVersion)
	return err
}

func pods(c client, arguments []string) error {
	var quiet bool
	declare := func(options *pflag.FlagSet) { options.BoolVarP(&quiet, "quiet", "q", false, "only show ids") }
	if _, err := parse("pods", arguments, 0, 0, declare); err != nil {
		return err
	}
	service, err := c.runtime()
	if err != nil {
		return err
	}
	answer, err := service.ListPodSandbox(context.Background(), &cri.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("listing sandboxes: %w", err)
	}
	items := answer.Items
	sort.SliceStable(items, func(i, j int) bool { return items[i].CreatedAt > items[j].CreatedAt })
	if quiet {
		var ids []string
		for _, pod := range items {
			ids = append(ids, pod.Id)
		}
		return printLines(ids)
	}
	return printTable(func(table io.Writer) {
		fmt.Fprintln(table, "POD ID\tCREATED\tSTATE\tNAME\tNAMESPACE\tATTEMPT")
		for _, pod := range items {
			state := strings.TrimPrefix(pod.State.String(), "SANDBOX_")
			metadata := pod.GetMetadata()
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%d\n", short(pod.Id), created(pod.CreatedAt), state,
				metadata.GetName(), metadata.GetNamespace(), metadata.GetAttempt())
		}
	})
}

func containers(c client, arguments []string) error {
	var all, quiet bool
	declare := func(options *pflag.FlagSet) {
		options.BoolVarP(&all, "all", "a", false, "show containers that do not run, too")
		options.BoolVarP(&quiet, "quiet", "q", false, "only show ids")
	}
	if _, err := parse("ps", arguments, 0, 0, declare); err != nil {
		return err
	}
	service, err := c.runtime()
	if err != nil {
		return err
	}
	request := &cri.ListContainersRequest{}
	if !all {
		running := &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}
		request.Filter = &cri.ContainerFilter{State: running}
	}
	answer, err := service.ListContainers(context.Background(), request)
	if err != nil {
		return fmt.Errorf("listing containers: %w", err)
	}
	items := answer.Containers
	sort.SliceStable(items, func(i, j int) bool { return items[i].CreatedAt > items[j].CreatedAt })
	if quiet {
		var ids []string
		for _, container := range items {
			ids = append(ids, container.Id)
		}
		return printLines(ids)
	}
	return printTable(func(table io.Writer) {
		fmt.Fprintln(table, "CONTAINER\tIMAGE\tCREATED\tSTATE\tNAME\tATTEMPT\tPOD ID")
		for _, container := range items {
			state := strings.TrimPrefix(container.State.String(), "CONTAINER_")
			metadata := container.GetMetadata()
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", short(container.Id), short(container.GetImage().GetImage()),
				created(container.CreatedAt), state, metadata.GetName(), metadata.GetAttempt(), short(container.PodSandboxId))
		}
	})
}

func images(c client, arguments []string) error {
	var quiet bool
	declare := func(options *pflag.FlagSet) { options.BoolVarP(&quiet, "quiet", "q", false, "only show ids") }
	if _, err := parse("images", arguments, 0, 0, declare); err != nil {
		return err
	}
	service, err := c.images()
	if err != nil {
		return err
	}
	answer, err := service.ListImages(context.Background(), &cri.ListImagesRequest{})
	if err != nil {
		return fmt.Errorf("listing images: %w", err)
	}
	if quiet {
		var ids []string
		for _, image := range answer.Images {
			ids = append(ids, image.Id)
		}
		return printLines(ids)
	}
	return printTable(func(table io.Writer) {
		fmt.Fprintln(table, "IMAGE\tIMAGE ID\tSIZE")
		for _, image := range answer.Images {
			names := image.RepoTags
			if len(names) == 0 {
				names = image.RepoDigests
			}
			if len(names) == 0 {
				names = []string{"<none>"}
			}
			for _, name := range names {
				fmt.Fprintf(table, "%s\t%s\t%d\n", name, short(image.Id), image.Size_)
			}
		}
	})
}

func inspectImages(c client, arguments []string) error {
	names, err := parse("inspecti", arguments, 1, -1, nil)
	if err != nil {
		return err
	}
	service, err := c.images()
	if err != nil {
		return err
	}
	for _, name := range names {
		request := &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}, Verbose: true}
		answer, err := service.ImageStatus(context.Background(), request)
		if err != nil {
			return fmt.Errorf("getting the status of image %q: %w", name, err)
		}
		image := answer.GetImage()
		if image == nil {
			return fmt.Errorf("no such image %q present", name)
		}
		status := map[string]interface{}{
			"id": image.Id, "size": fmt.Sprint(image.Size_), "username": image.Username, "uid": image.Uid,
			// Lists even where there is nothing: null would be another type.
			"repoTags": append([]string{}, image.RepoTags...), "repoDigests": append([]string{}, image.RepoDigests...),
		}
		if err := printJSON(map[string]interface{}{"status": status}, answer.GetInfo()); err != nil {
			return err
		}
	}
	return nil
}

func pull(c client, arguments []string) error {
	names, err := parse("pull", arguments, 1, 1, nil)
	if err != nil {
		return err
	}
	service, err := c.images()
	if err != nil {
		return err
	}
	answer, err := service.PullImage(context.Background(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: names[0]}})
	if err != nil {
		return fmt.Errorf("pulling image %q: %w", names[0], err)
	}
	_, err = fmt.Println("Image is up to date for", answer.ImageRef)
	return err
}

func stopPods(c client, arguments []string) error {
	ids, err := parse("stopp", arguments, 1, -1, nil)
	if err != nil {
		return err
	}
	service, err := c.runtime()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, err := service.StopPodSandbox(context.Background(), &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
			return fmt.Errorf("stopping sandbox %q: %w", id, err)
		}
		fmt.Println("Stopped sandbox", id)
	}
	return nil
}

func removePods(c client, arguments []string) error {
	var force bool
	declare := func(options *pflag.FlagSet) {
		options.BoolVarP(&force, "force", "f", false, "stop a sandbox that is ready before removing it")
	}
	ids, err := parse("rmp", arguments, 1, -1, declare)
	if err != nil {
		return err
	}
	service, err := c.runtime()
	if err != nil {
		return err
	}
	for _, id := range ids {
		answer, err := service.PodSandboxStatus(context.Background(), &cri.PodSandboxStatusRequest{PodSandboxId: id})
		if err != nil {
			return fmt.Errorf("getting the status of sandbox %q: %w", id, err)
		}
		if answer.GetStatus().GetState() == cri.PodSandboxState_SANDBOX_READY {
			if !force {
				return fmt.Errorf("sandbox %q is ready: stop it first, or remove it with --force", id)
			}
			if _, err := service.StopPodSandbox(context.Background(), &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
				return fmt.Errorf("stopping sandbox %q: %w", id, err)
			}
		}
		if _, err := service.RemovePodSandbox(context.Background(), &cri.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
			return fmt.Errorf("removing sandbox %q: %w", id, err)
		}
		fmt.Println("Removed sandbox", id)
	}
	return nil
}
