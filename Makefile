# What a person types. `make` alone lists the targets.

# Debian's packages, all of them in this one place. QEMU 10 itself (qemu-system-x86, qemu-utils) comes from the backports
# suite, QEMU 7.2 is unpacked beside it: tests/setup/packages.sh and tests/setup/qemu-old.sh. Of libvirt, only the library that
# programs are linked with is installed, the release's own; the daemons of the tests are unpacked: tests/setup/libvirt.sh.
PACKAGES_BUILD = gcc libc6-dev
PACKAGES_DEMO  = $(PACKAGES_BUILD) fuse3 e2fsprogs busybox-static kmod cpio xz-utils python3
PACKAGES_TEST  = $(PACKAGES_DEMO) attr acl libcap2-bin rsync libnbd-bin nbdkit openssl strace systemd iproute2 nftables man-db zsh fish python3-jsonschema dpkg-dev lintian mmdebstrap openssh-client
PACKAGES_TEST += file gddrescue restic borgbackup p7zip-full sqlite3 libvirt-dev virtnbdbackup
# rclone and what its S3 server needs; clients of NFS and Samba, whose servers are unpacked.
PACKAGES_TEST += rclone python3-pip python3-boto3 python3-flask python3-flask-cors python3-responses python3-xmltodict
PACKAGES_TEST += libnfs-utils smbclient
# What makes and fills the disks that are looked into.
PACKAGES_TEST += acl fdisk gdisk mtools dosfstools exfatprogs ntfs-3g xfsprogs btrfs-progs f2fs-tools squashfs-tools genisoimage bcache-tools cryptsetup-bin
# Unpacked: installed, its daemons would run for the whole computer.
PACKAGES_BACULA = bacula-director bacula-director-sqlite3 bacula-sd bacula-fd bacula-console bacula-common bacula-common-sqlite3
# Not libvirt-daemon-system, which would start a libvirtd for the whole computer.
PACKAGES_BENCH = fio rsync virtnbdbackup libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients
PACKAGES_FUZZ  = $(PACKAGES_BUILD) g++

PREFIX  = /usr/local
DESTDIR =
# mount(8) looks for helpers in /sbin and /usr/sbin alone: with PREFIX=/usr/local, `mount -t pullfs` and fstab need
# SBINDIR=/usr/sbin (or a link there); `pullfs mount` needs nothing.
BINDIR  = $(PREFIX)/bin
SBINDIR = $(PREFIX)/sbin
UNITDIR = $(PREFIX)/lib/systemd/system
LIBEXECDIR = $(PREFIX)/libexec/pullfs
MANDIR  = $(PREFIX)/share/man
# Where the three shells look without being told.
BASHDIR = $(PREFIX)/share/bash-completion/completions
ZSHDIR  = $(PREFIX)/share/zsh/site-functions
FISHDIR = $(PREFIX)/share/fish/vendor_completions.d

CARGO = cargo
SETUP = $(CURDIR)/target/setup
# Where Cargo puts its output is Cargo's business (CARGO_TARGET_DIR, its configuration files).
TARGET_DIR = $(shell $(CARGO) metadata --format-version 1 --no-deps --offline | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')

# What the tests find their machines by; see tests/src/tools.rs.
qemu_old = $$([ -e $(SETUP)/qemu-old/.complete ] && echo $(SETUP)/qemu-old || echo none)
qemu_new = $$(qemu-system-x86_64 --version | grep -q 'version [2-8]\.' && echo none || echo installed)
libvirt  = $$([ -e $(SETUP)/libvirt-$(1)/.complete ] && echo $(SETUP)/libvirt-$(1) || echo none)
machines = PULLFS_TEST_GUEST=$(SETUP)/guest PULLFS_TEST_QEMU_OLD=$(qemu_old) PULLFS_TEST_QEMU_NEW=$(qemu_new) \
    PULLFS_TEST_LIBVIRT_OLD=$(call libvirt,9) PULLFS_TEST_LIBVIRT_NEW=$(call libvirt,11)

.PHONY: help check deny test long newest soak fuzz bench demo install deb setup setup-demo clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null || \
	    sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1: \2/p' Makefile

check: deny ## before a push, without QEMU: format, lints, unit tests, documents, what comes in with dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	$(CARGO) clippy -p pullfs --all-targets --no-default-features -- -D warnings
	$(CARGO) test --workspace --exclude pullfs-tests --all-features --lib --bins
	$(CARGO) test -p pullfs-tests --test docs

# The one that is installed, or one of our own, which takes some minutes to build.
deny = PATH="$(SETUP)/bin:$$PATH" $(CARGO) deny --workspace

deny: ## licences, sources and known vulnerabilities of dependencies (deny.toml)
	@$(deny) --version >/dev/null 2>&1 || $(CARGO) install --quiet --locked --root $(SETUP) cargo-deny@0.20.2
	$(deny) check --hide-inclusion-graph bans licenses sources
	@if $(deny) fetch db 2>/dev/null; then $(deny) check --hide-inclusion-graph --disable-fetch advisories; \
	    else echo "*** KNOWN VULNERABILITIES WERE NOT CHECKED: the advisory database cannot be fetched ***"; fi

# Tests of machines wait about half of the time: with more at a time they are done sooner, and more of them wait for a processor.
THREADS = $$(nproc)
test: setup ## THREADS=(processors): everything, as root: installs what it needs, real QEMU, real mounts
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	$(CARGO) clippy -p pullfs --all-targets --no-default-features -- -D warnings
	$(CARGO) build -p pullfs -p pullfs-mount-helpers
	$(CARGO) test --workspace --all-features --doc
	$(CARGO) test --workspace --all-features --exclude pullfs-tests --lib --bins --tests --no-fail-fast
	$(machines) RUST_TEST_THREADS=$(THREADS) $(CARGO) test -p pullfs-tests --no-fail-fast --lib --tests
	@for missing in "PULLFS_TEST_QEMU_OLD=$(qemu_old)" "PULLFS_TEST_QEMU_NEW=$(qemu_new)"; do case $$missing in \
	    *OLD=none) echo "*** ONLY ONE QEMU WAS TESTED: $$(qemu-system-x86_64 --version | head -n 1); 7.2 COULD NOT BE HAD ***" ;; \
	    *NEW=none) echo "*** ONLY ONE QEMU WAS TESTED: $$(qemu-system-x86_64 --version | head -n 1); 9.0 OR NEWER COULD NOT BE HAD ***" ;; \
	esac; done
	@for major in 9 11; do [ -e $(SETUP)/libvirt-$$major/.complete ] || \
	    echo "*** libvirt $$major COULD NOT BE HAD: NOTHING WAS TESTED WITH IT ***"; done

# How many steps each history has, how often libvirt's operations are cut off, and how many of a guest's files are compared:
# make long STEPS=1000
STEPS = 400
KILLS = 40
FILES = 100000
long: setup ## STEPS=400 KILLS=40 FILES=100000: what `make test` takes samples of: histories, moments, a guest's files
	$(machines) PULLFS_TEST_HISTORY=$(STEPS) PULLFS_TEST_KILLS=$(KILLS) PULLFS_TEST_FILES=$(FILES) \
		$(CARGO) test -p pullfs-tests --test it --no-fail-fast -- history:: killed::in_ inside::many inside::ntfs guest_fills

newest: setup ## the tests of QEMU 10 again, with the newest QEMU that a later Debian has
	tests/setup/qemu-newest.sh $(SETUP)/qemu-newest
	PATH="$(SETUP)/qemu-newest/bin:$$PATH" $(machines) $(CARGO) test -p pullfs-tests --test it --no-fail-fast -- ::new

# The stable toolchain is enough: without a sanitizer, libFuzzer needs no unstable flag. New inputs go to the first directory.
TARGET  = $(notdir $(wildcard fuzz/corpus/*))
found   = $(CURDIR)/target/fuzz/found
fuzz: SECONDS = 60
fuzz: ## TARGET=(all in turn) SECONDS=60: libFuzzer, guided by what is covered (docs/fuzzing.md)
	tests/setup/packages.sh $(PACKAGES_FUZZ)
	[ -x $(SETUP)/bin/cargo-fuzz ] || $(CARGO) install --locked --root $(SETUP) cargo-fuzz
	@set -e; for target in $(TARGET); do mkdir -p $(found)/$$target; echo "*** $$target"; \
	    PATH="$(SETUP)/bin:$$PATH" PULLFS_FUZZ_TARGET=$$target $(CARGO) fuzz run --fuzz-dir fuzz/engine --sanitizer none \
	        --target-dir $(CURDIR)/target/fuzz target $(found)/$$target fuzz/corpus/$$target -- -max_total_time=$(SECONDS) \
	        -rss_limit_mb=1024 -timeout=5 -artifact_prefix=$(found)/ -print_final_stats=1; done

# How long each soak lasts, and what its choices are made from: make soak SECONDS=600 SEED=7
SEED = $(shell date +%s)

soak: SECONDS = 300
soak: setup ## SECONDS=300 SEED=: 64 readers, a writing guest and everything that breaks, for minutes, against both QEMUs
	$(machines) PULLFS_TEST_SOAK=$(SECONDS),$(SEED) $(CARGO) test -p pullfs-tests --test it --no-fail-fast -- \
	    --nocapture --test-threads=1 soak::

# Which works (a to i, docs/performance.md), how often, with how much data: make bench WORK=a,b ROUNDS=3 SIZE=512M
WORK   =
ROUNDS = 5
SIZE   = 1G
bench: setup ## WORK=(all) ROUNDS=5 SIZE=1G: pullfs and its peers in turns; writes bench/results (docs/performance.md)
	tests/setup/packages.sh $(PACKAGES_BENCH)
	$(CARGO) build --release -p pullfs -p pullfs-mount-helpers -p pullfs-bench
	$(machines) $(TARGET_DIR)/release/pullfs-bench $(if $(WORK),--work $(WORK)) --rounds $(ROUNDS) --size $(SIZE)

demo: setup-demo ## as root: mounts a small machine that runs Linux and backs it up while it writes
	$(CARGO) build --release --quiet -p pullfs -p pullfs-mount-helpers
	tests/demo.sh $(TARGET_DIR)/release/pullfs $(SETUP)/guest

# What is installed is built with it: PROFILE=dev for the test of this.
PROFILE = release
BUILT   = $(TARGET_DIR)/$(PROFILE:dev=debug)
UNITS   = pullfs@.service pullfs-nightly@.service pullfs-nightly@.timer

install: ## PREFIX=/usr/local DESTDIR=: programs, mount helper, manual pages, completions, systemd units
	$(CARGO) build --profile $(PROFILE) -p pullfs -p pullfs-mount-helpers -p pullfs-manuals
	install -D -m 755 $(BUILT)/pullfs $(DESTDIR)$(BINDIR)/pullfs
	install -D -m 755 $(BUILT)/mount-pullfs $(DESTDIR)$(SBINDIR)/mount.pullfs
	install -D -m 755 mount-helpers/nightly.sh $(DESTDIR)$(LIBEXECDIR)/nightly
	install -D -m 755 mount-helpers/prunefs.sh $(DESTDIR)$(LIBEXECDIR)/prunefs
	install -d $(DESTDIR)$(UNITDIR)
	set -e; for unit in $(UNITS); do install -m 644 mount-helpers/systemd/$$unit $(DESTDIR)$(UNITDIR); \
	    sed -i 's|/usr/local/bin|$(BINDIR)|; s|/usr/local/libexec/pullfs|$(LIBEXECDIR)|' $(DESTDIR)$(UNITDIR)/$$unit; done
	rm -rf $(BUILT)/manuals
	$(BUILT)/pullfs-manuals $(BUILT)/manuals
	set -e; for man in man1 man5 man8; do install -d $(DESTDIR)$(MANDIR)/$$man; \
	    install -m 644 $(BUILT)/manuals/$$man/* $(DESTDIR)$(MANDIR)/$$man; done
	install -D -m 644 $(BUILT)/manuals/bash/pullfs $(DESTDIR)$(BASHDIR)/pullfs
	install -D -m 644 $(BUILT)/manuals/zsh/_pullfs $(DESTDIR)$(ZSHDIR)/_pullfs
	install -D -m 644 $(BUILT)/manuals/fish/pullfs.fish $(DESTDIR)$(FISHDIR)/pullfs.fish

# Cargo-deb packs what was installed here (ctl/Cargo.toml): only `install` knows which files there are.
STAGE  = $(CURDIR)/target/deb
SHARED = $(STAGE)/usr/share
OUT    = $(CURDIR)/target/debian
# The package is the same whenever and wherever it is built.
packed = $$(date -u -d "$$(sed -n 's/^ -- .*>  //p' ctl/debian/changelog | head -n 1)" +%s)

deb: ## OUT=target/debian: the Debian package, of what is installed and the documents
	@[ -x $(SETUP)/bin/cargo-deb ] || $(CARGO) install --quiet --locked --root $(SETUP) cargo-deb@3.8.0
	rm -rf $(STAGE)
	$(MAKE) install DESTDIR=$(STAGE) PREFIX=/usr PROFILE=$(PROFILE)
	strip --strip-unneeded --remove-section=.comment --remove-section=.note $(STAGE)/usr/bin/pullfs $(STAGE)/usr/sbin/mount.pullfs
	install -d $(SHARED)/doc/pullfs
	install -m 644 README.md $$(find docs -maxdepth 1 -type f) $(SHARED)/doc/pullfs
	install -m 644 CHANGELOG.md $(SHARED)/doc/pullfs/changelog
	install -D -m 644 ctl/debian/lintian-overrides $(SHARED)/lintian/overrides/pullfs
	install -d $(STAGE)/etc/pullfs
	sed 's/^[^#]/#&/' docs/config.toml >$(STAGE)/etc/pullfs/config.toml
	$(BUILT)/pullfs-notices >$(STAGE)/notices
	cat ctl/debian/copyright $(STAGE)/notices >$(STAGE)/copyright
	mkdir -p $(OUT)
	SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$(packed)} PATH="$(SETUP)/bin:$$PATH" \
	    $(CARGO) deb --quiet -p pullfs --no-build --no-strip --output $(OUT)/

setup: ## as root: Debian's packages, QEMU 7.2 beside 10, two libvirts, the guest (`make test` calls this)
	tests/setup/packages.sh $(PACKAGES_TEST)
	tests/setup/qemu-old.sh $(SETUP)/qemu-old || [ $$? = 3 ]
	tests/setup/libvirt.sh $(SETUP)/libvirt-9 9 || [ $$? = 3 ]
	tests/setup/libvirt.sh $(SETUP)/libvirt-11 11 || [ $$? = 3 ]
	tests/setup/promtool.sh $(SETUP)/prometheus
	tests/setup/guest.sh $(SETUP)/guest
	tests/setup/clean-root.sh $(SETUP)/clean-root.tar
	tests/setup/unpacked.sh $(SETUP)/plocate plocate
	tests/setup/unpacked.sh $(SETUP)/lvm2 lvm2 mdadm
	tests/setup/unpacked.sh $(SETUP)/openssh-server openssh-server
	tests/setup/s3-server.sh $(SETUP)/s3-server
	set -e; for server in nfs-ganesha nfs-ganesha-vfs samba; do tests/setup/unpacked.sh $(SETUP)/$$server $$server; done
	tests/setup/unpacked.sh $(SETUP)/bacula $(PACKAGES_BACULA)

setup-demo:
	tests/setup/packages.sh $(PACKAGES_DEMO)
	tests/setup/guest.sh $(SETUP)/guest

clean: ## what was built and set up
	$(CARGO) clean
	rm -rf $(SETUP)
