# Every target installs what it needs. Run as root on Debian 12 or later: the lab
# makes hosts of namespaces.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# One set of flags for all that is compiled, so that the bundle, the command and
# the tests share one build cache.
export CGO_ENABLED := 0
export GOFLAGS := -trimpath -buildvcs=false

KUBEWRIGHT := bin/kubewright
BUNDLE_VERSION := $(shell sed -n 's|^\tk8s.io/kubernetes ||p' go.mod)
ARCH := $(shell go env GOARCH)
BUNDLE := dist/kubewright-$(BUNDLE_VERSION)-linux-$(ARCH).kwb

LAB ?= demo
STATE := /var/lib/kubewright-lab/$(LAB)
ACCESS := -F $(STATE)/ssh_config --kubeconfig $(STATE)/kubeconfig

# Debian packages: a C compiler and libseccomp for runc; the rest for the lab and the tests.
PACKAGES := gcc libc6-dev libseccomp-dev mmdebstrap nftables iproute2 openssh-client openssh-server busybox-static
# What the end-to-end suite looks at pages with.
BROWSER := chromium fonts-dejavu-core
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: help
help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: packages browser
packages: WANTED = $(PACKAGES)
packages: ## install the Debian packages that are missing
	@$(install)
browser: WANTED = $(BROWSER)
browser:
	@$(install)

define install
missing=$$({ dpkg-query -W -f '$${Package} $${Status}\n' $(WANTED) 2>/dev/null || true; } | sed -n 's/ install ok installed$$//p' \
  | sort - | comm -13 - <(printf '%s\n' $(WANTED) | sort)); \
if [ -n "$$missing" ]; then apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; fi
endef

.PHONY: build
build: packages $(KUBEWRIGHT) $(BUNDLE) ## build the command and the bundle

SOURCES := $(shell find bootstrap cmd pki addons templates lab -name '*.go' -not -name '*_test.go' -o -name '*.tmpl') go.mod go.sum versions.go
COMPONENTS := $(shell find cmd/kube cmd/pause cmd/probe cmd/unbundle bootstrap/backup bootstrap/bundle bootstrap/cluster bootstrap/etcd bootstrap/fault bootstrap/file bootstrap/host bootstrap/install bootstrap/kubeconfig bootstrap/plan bootstrap/probe bootstrap/spec bootstrap/systemd bootstrap/version pki -name '*.go' -not -name '*_test.go') go.mod go.sum versions.go

$(KUBEWRIGHT): $(SOURCES)
	go build -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$(BUNDLE_VERSION)" -o $@ ./cmd/kubewright

$(BUNDLE): $(COMPONENTS) | $(KUBEWRIGHT)
	$(KUBEWRIGHT) bundle build --out $@

.PHONY: up
up: build ## make a lab of three hosts and a cluster on it
	$(KUBEWRIGHT) lab create $(LAB) --hosts 3
	$(KUBEWRIGHT) init $(LAB)-1 --name $(LAB) $(ACCESS)
	$(KUBEWRIGHT) join $(LAB)-2 $(LAB)-3 $(ACCESS)
	@KUBECONFIG=$(STATE)/kubeconfig $(KUBEWRIGHT) kubectl get nodes -o wide
	@printf '%s\n' '' 'Use it:' \
	  '  export KUBECONFIG=$(STATE)/kubeconfig' \
	  '  $(KUBEWRIGHT) kubectl get pods -A' \
	  '  $(KUBEWRIGHT) status -F $(STATE)/ssh_config' \
	  '  $(KUBEWRIGHT) lab ssh $(LAB) $(LAB)-1' \
	  'Take it down: make down'

HA := /var/lib/kubewright-lab/ha
.PHONY: ha
ha: build ## make a lab with three control-plane hosts and two workers, to practise on (kubewright drill)
	$(KUBEWRIGHT) lab create ha --hosts 5
	$(KUBEWRIGHT) init -f testdata/specs/valid/ha.yaml -F $(HA)/ssh_config --kubeconfig $(HA)/kubeconfig
	$(KUBEWRIGHT) etcd health -F $(HA)/ssh_config --kubeconfig $(HA)/kubeconfig
	@printf '%s\n' '' 'Practise: $(KUBEWRIGHT) drill kill-leader -F $(HA)/ssh_config --kubeconfig $(HA)/kubeconfig' 'Take it down: make down LAB=ha'

.PHONY: down
down: ## destroy the lab
	$(KUBEWRIGHT) lab destroy $(LAB)

.PHONY: lint
lint: packages ## gofmt, vet, staticcheck, go.mod
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); [ -z "$$unformatted" ] || { echo "not gofmt-ed: $$unformatted" >&2; exit 1; }
	go mod tidy -diff
	go vet ./...
	go run $(STATICCHECK) ./...

.PHONY: unit
unit: packages ## unit tests
	go test $$(go list ./... | grep -v /e2e)

.PHONY: test
test: build browser lint unit interruptions ## unit tests, lint, every interruption, and the end-to-end suite on lab hosts
	go test -count=1 -timeout 60m -v ./e2e

.PHONY: interruptions
interruptions: ## init, join, remove, reset, restore and recover broken off at every operation, and in 2000 random stories, on the simulated cluster
	go test -count=1 -timeout 60m -v -run 'TestEveryPoint|TestSchedules$$' ./bootstrap -points 0 -schedules 2000

.PHONY: reliability
reliability: interruptions ## that, and the time of preflight on simulated hosts
	go test -run '^$$' -bench BenchmarkPreflight -count 3 ./bootstrap/preflight

.PHONY: drill
drill: build ## what clients see of a control-plane host that dies: every fault on lab hosts, three runs
	go run ./e2e/drill

.PHONY: bench
bench: build ## bare hosts to three nodes Ready, three runs, split by step and host
	go run ./e2e/bench
