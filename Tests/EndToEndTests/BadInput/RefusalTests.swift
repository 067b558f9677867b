import XCTest

/// What cannot be done is refused with the reason, and nothing is left of the attempt.
final class RefusalTests: HostsTestCase {
    private func assertRefused(_ result: CommandResult, _ parts: String..., file: StaticString = #filePath, line: UInt = #line) {
        XCTAssertEqual(result.status, 1, result.summary, file: file, line: line)
        for part in parts { XCTAssertTrue(result.err.contains(part), "'\(part)' is not in: \(result.summary)", file: file, line: line) }
        XCTAssertEqual(result.out, "", "stdout is for data", file: file, line: line)
    }

    private func protect(_ guest: LedgerGuest, _ more: [String] = ["--without-disks"], to host: String? = nil, domain: String? = nil) throws -> CommandResult {
        try hosts.run(guest.home, [TwoHosts.binary, "protect", domain ?? guest.name, "--to", host ?? guest.home.other.name, "--no-policy"] + more, limit: 60)
    }

    func testDoubleProtect() throws {
        let guest = try protectedGuest()
        assertRefused(try protect(guest), "protected already, to \(guest.home.other.name)", "shadow-virt unprotect \(guest.name)")
        try guest.waitForEpochs(10)
    }

    func testProtectOnTheShadowsHost() throws {
        let guest = try protectedGuest()
        let result = try hosts.shadowVirt(guest.home.other, "protect", guest.name, "--to", guest.home.name, "--without-disks", "--no-policy")
        assertRefused(result, "holds the shadow of \(guest.name)")
        try guest.waitForEpochs(10)
    }

    func testUnknownDomain() throws {
        let guest = try unprotectedGuest()
        assertRefused(try protect(guest, domain: "nosuchdomain"), "nosuchdomain")
        try hosts.assertNoTraces(of: guest.name)
    }

    func testUnknownHost() throws {
        let guest = try unprotectedGuest()
        assertRefused(try protect(guest, to: "hostC"), "Unknown host hostC", guest.home.other.name)
        try hosts.assertNoTraces(of: guest.name)
    }

    func testDiskInNoPool() throws {
        let guest = try unprotectedGuest()
        assertRefused(try protect(guest, []), "vda", "is in no storage pool", "--pool")
        try hosts.assertNoTraces(of: guest.name)
    }

    func testSuspendedGuest() throws {
        let guest = try unprotectedGuest()
        try hosts.virsh(guest.home, "suspend", guest.name)
        assertRefused(try protect(guest), "is suspended", "virsh resume \(guest.name)")
        try hosts.virsh(guest.home, "resume", guest.name)
        try guest.waitForTicks(10)
        try hosts.assertNoTraces(of: guest.name)
    }

    func testDomainThatDoesNotRun() throws {
        let guest = try unprotectedGuest()
        try "<domain type='kvm'><name>idle</name><memory unit='MiB'>64</memory><os><type arch='x86_64'>hvm</type></os></domain>"
            .write(toFile: hosts.folder + "/idle.xml", atomically: true, encoding: .utf8)
        let defined = try hosts.virsh(guest.home, "define", try hosts.folder + "/idle.xml")
        try require(defined.succeeded, defined.summary)
        defer { _ = try? hosts.virsh(guest.home, "undefine", "idle") }
        assertRefused(try protect(guest, domain: "idle"), "does not run", "virsh start idle")
    }

    func testAccelerator() throws {
        let guest = try unprotectedGuest()
        let hosts = try hosts
        let xml = hosts.folder + "/tcg.xml"
        let made = try runCommand([TwoHosts.tests + "/Guests/domain.sh", "tcg", "TYPE=qemu", "DISK=", "KERNEL=/var/lib/libvirt/images/ledger.img"], limit: 10)
        try made.out.write(toFile: xml, atomically: true, encoding: .utf8)
        let created = try hosts.virsh(guest.home, "create", xml)
        try require(created.succeeded, created.summary)
        defer { _ = try? hosts.virsh(guest.home, "destroy", "tcg") }
        assertRefused(try protect(guest, ["--without-disks", "--engine", "continuous"], domain: "tcg"), "runs under TCG", "<domain type='kvm'>", "--engine periodic")
        assertRefused(try protect(guest, ["--without-disks", "--interval", "20ms"], domain: "tcg"), "nothing for the engine periodic", "1s to 1h")
        XCTAssertEqual(try hosts.domainState(guest.home, "tcg"), "running")
    }

    func testPeerDoesNotRun() throws {
        let guest = try unprotectedGuest()
        let other = guest.home.other
        try hosts.service(other).stop()
        let result = try protect(guest)
        try hosts.service(other).start()
        try hosts.waitForService(other)
        assertRefused(result, other.name, "Check that shadow-virt runs on \(other.name)")
        XCTAssertTrue(guest.isTicking)
        try hosts.assertNoTraces(of: guest.name)
    }

    func testWrongSecret() throws {
        let guest = try unprotectedGuest()
        let other = guest.home.other
        try hosts.service(other).stop()
        try hosts.writeSecret(other, "ffeeddccbbaa99887766554433221100")
        try hosts.service(other).start()
        try hosts.waitForService(other)
        let result = try protect(guest)
        try hosts.service(other).stop()
        try hosts.writeSecret(other, TwoHosts.secret)
        try hosts.service(other).start()
        try hosts.waitForService(other)
        assertRefused(result, "secret")
        XCTAssertFalse(result.err.contains(TwoHosts.secret))
        XCTAssertTrue(guest.isTicking)
        try hosts.assertNoTraces(of: guest.name)
        try guest.protect()
    }

    /// The secret is changed on one side under protection: the guest runs on, and the reason is told.
    func testSecretChangedUnderProtection() throws {
        let guest = try protectedGuest()
        let other = guest.home.other
        try hosts.service(other).stop()
        try hosts.writeSecret(other, "ffeeddccbbaa99887766554433221100")
        try hosts.service(other).start()
        try hosts.waitForService(other)
        try hosts.waitForState(guest.home, guest.name, ["degraded"], limit: 20)
        try waitUntil("the reason names the secret", limit: 15) { try hosts.status(guest.home, guest.name)?.reason.contains("secret") ?? false }
        XCTAssertTrue(guest.isTicking)
        try hosts.service(other).stop()
        try hosts.writeSecret(other, TwoHosts.secret)
        try hosts.service(other).start()
        try guest.waitUntilWholeAgain(limit: 25)
    }

    func testPeerAnswersRubbish() throws { try rubbish("print $c join('', map { chr(int(rand(256))) } 1 .. 5000); close $c;") }
    func testPeerAnswersTextForEver() throws { try rubbish("print $c \"HTTP/1.1 200 OK\\r\\n\" x 10 while 1;") }
    func testPeerSaysNothing() throws { try rubbish("sleep 60;") }

    /// Something else listens on the peer's port.
    private func rubbish(_ answer: String) throws {
        let guest = try unprotectedGuest()
        let other = guest.home.other
        try hosts.service(other).stop()
        let program = """
            use IO::Socket::INET; $SIG{PIPE} = 'IGNORE'; $| = 1;
            my $s = IO::Socket::INET->new(LocalAddr => '\(other.address)', LocalPort => 16520, Listen => 5, ReuseAddr => 1) or die;
            while (my $c = $s->accept) { if (!fork) { $c->autoflush(1); \(answer) exit } }
            """
        let server = try ChildProcess([TwoHosts.script, "exec", try hosts.folder, other.rawValue, "perl", "-e", program])
        usleep(500_000)
        let result = Result { try protect(guest) }
        // All it forked goes with it: they are the only perl programs of ours with this text.
        for pid in Processes.all where Processes.arguments(of: pid).contains(program) { kill(pid, SIGKILL) }
        _ = server.wait(limit: 5)
        try hosts.service(other).start()
        try hosts.waitForService(other)
        assertRefused(try result.get(), other.name)
        XCTAssertLessThan(try result.get().seconds, 30)
        XCTAssertTrue(guest.isTicking)
        try hosts.assertNoTraces(of: guest.name)
    }

    /// Strangers write rubbish to the peers' port of both services and to the control socket.
    func testRubbishFromStrangers() throws {
        let guest = try protectedGuest()
        let mark = guest.serial.mark
        for host in Host.allCases {
            let program = """
                use IO::Socket::INET; use IO::Socket::UNIX; $SIG{PIPE} = 'IGNORE'; my @open;
                for (1 .. 100) {
                  my $p = IO::Socket::INET->new(PeerAddr => '\(host.address)', PeerPort => 16520) or next;
                  print $p join('', map { chr(int(rand(256))) } 1 .. int(rand(20000))); push @open, $p if $_ % 3;
                  my $c = IO::Socket::UNIX->new(Peer => '/run/shadow-virt/control.sock') or next;
                  print $c join('', map { chr(int(rand(256))) } 1 .. int(rand(20000))), "\\n"; push @open, $c if $_ % 3;
                }
                sleep 2;
                """
            let result = try hosts.run(host, ["perl", "-e", program], limit: 30)
            XCTAssertEqual(result.status, 0, result.summary)
        }
        try guest.waitUntilWholeAgain(limit: 20)
        XCTAssertLessThan(guest.serial.largestGap(since: mark), 1)
        XCTAssertEqual(try hosts.service(.a).restarts + hosts.service(.b).restarts, 0, "a service died of it")
        try guest.waitForEpochs(10)
    }
}
