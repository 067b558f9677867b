import Foundation
import XCTest

/// `swap --to` of a guest without a shadow: libvirt's own live migration, with volumes made at the other host.
final class LiveMigrationTests: DisksTestCase {
    /// The published keys of `swap --to --format json`.
    private struct Report: Decodable {
        var mode: String
        var totalMs: Double
        var downtimeMs: Double?
        var bytes: Int
        var memoryBytes: Int
        var persistent: Bool
        var autostart: Bool
        var disks: [String: String]
        var warnings: [String]
        var passes: Int?
    }

    private struct Forecast: Decodable {
        var memoryBytes: Int
        var dirtyBytesPerSecond: Int
        var bandwidthBytesPerSecond: Int
        var bandwidthSource: String
        var converges: String
        var durationMs: Double?
        var downtimeMs: Double?
        var bytes: Int?
    }

    private func decode<T: Decodable>(_ type: T.Type, _ result: CommandResult) throws -> T {
        try require(result.succeeded, "swap: \(result.summary)")
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        return try decoder.decode(type, from: Data(result.out.utf8))
    }

    private func swapTo(_ guest: LedgerGuest, _ options: [String] = [], host: String? = nil) throws -> CommandResult {
        try hosts.run(guest.home, [TwoHosts.binary, "swap", guest.name, "--to", host ?? guest.home.other.name] + options, limit: 90)
    }

    /// Moves the guest and checks that it is there, whole, and nowhere else.
    @discardableResult
    private func move(_ guest: LedgerGuest, _ options: [String] = []) throws -> Report {
        let (from, to) = (guest.home, guest.home.other)
        let report = try decode(Report.self, swapTo(guest, options + ["--format", "json"]))
        try guest.followToOther(mayRepeat: 0)
        XCTAssertEqual(try hosts.domainState(to, guest.name), "running")
        XCTAssertNil(try hosts.domainState(from, guest.name), "It is still defined where it came from")
        XCTAssertNil(try hosts.qemu(from, guest.name))
        return report
    }

    private func isSet(_ what: String, _ host: Host, _ name: String) throws -> Bool {
        let line = try hosts.virsh(host, "dominfo", name).out.split(separator: "\n").first { $0.hasPrefix(what + ":") }
        return line?.hasSuffix("yes") == true || line?.hasSuffix("enable") == true
    }

    private func volumes(_ host: Host) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: hosts.root(host) + Self.images).sorted()
    }

    /// What the service remembers of migrations under way.
    private func records(_ host: Host) throws -> [String] {
        ((try? FileManager.default.contentsOfDirectory(atPath: hosts.root(host) + "/var/lib/shadow-virt/migrations")) ?? []).filter { $0 != "bandwidth" }
    }

    private func assertRefused(_ result: CommandResult, _ parts: String..., status: Int32 = 1, file: StaticString = #filePath, line: UInt = #line) {
        XCTAssertEqual(result.status, status, result.summary, file: file, line: line)
        for part in parts { XCTAssertTrue(result.err.contains(part), "'\(part)' is not in: \(result.summary)", file: file, line: line) }
        XCTAssertEqual(result.out, "", "stdout is for data", file: file, line: line)
    }

    // MARK: There and back

    func testMovesWithItsDiskAndBack() throws {
        let guest = try freshDiskGuest()
        try require(hosts.virsh(.a, "autostart", guest.name).succeeded, "virsh autostart")
        let there = try move(guest)
        XCTAssertEqual(there.mode, "precopy")
        XCTAssertTrue(there.persistent && there.autostart)
        XCTAssertEqual(there.disks, ["vda": Self.images + "/ledger.img"])
        XCTAssertEqual(there.bytes, there.memoryBytes + Self.diskBytes)
        XCTAssertTrue(try isSet("Persistent", .b, guest.name))
        XCTAssertTrue(try isSet("Autostart", .b, guest.name))
        try guest.waitForTicks(250, limit: 30)
        // The disk that it left on host A is taken for the copy: nobody has written to it since.
        let back = try move(guest)
        XCTAssertTrue(try isSet("Autostart", .a, guest.name))
        try assertInOrder(guest, ticks: 1000)
        XCTAssertEqual(try volumes(.a), ["ledger.img"])
        XCTAssertEqual(try records(.a) + records(.b), [])
        report("live migration, 64 MiB guest with a disk of 4 MiB: \(Int(there.totalMs)) and \(Int(back.totalMs)) ms, downtime \(there.downtimeMs.map { "\(Int($0))" } ?? "?") and "
            + "\(back.downtimeMs.map { "\(Int($0))" } ?? "?") ms as libvirt has it, outage \(guest.outages.map { "\(Int($0 * 1000))" }.joined(separator: " and ")) ms as the guest's output has it, "
            + "\(there.memoryBytes >> 10) KiB of memory sent")
    }

    /// After that an ordinary protection: the disk left behind becomes the replica.
    func testProtectedBackAfterwards() throws {
        let guest = try freshDiskGuest()
        try move(guest)
        try guest.protect()
        try guest.waitUntilProtected()
        try guest.swap()
        try assertInOrder(guest)
        assertRefused(try hosts.shadowVirt(guest.home, "swap", guest.name), "is not protected", "swap \(guest.name) --to HOST")
    }

    func testAQcow2DiskArrivesAsARawVolumeAndAMediumThatIsNotThereAsNone() throws {
        let medium = "<disk type='file' device='cdrom'><source file='\(Self.images)/a.iso'/><target dev='hdc' bus='ide'/><readonly/></disk>"
        let guest = try freshDiskGuest(edit: {
            $0.replacingOccurrences(of: "type='raw'/><source file='\(Self.images)/ledger.img'", with: "type='qcow2'/><source file='\(Self.images)/ledger.qcow2'")
                .replacingOccurrences(of: "<controller type='usb'", with: medium + "<controller type='usb'")
        }, prepare: {
            try Data(count: 2048 * 16).write(to: URL(fileURLWithPath: image(.a, "a.iso")))
            let made = try runCommand(["qemu-img", "convert", "-O", "qcow2", image(.a), image(.a, "ledger.qcow2")], limit: 20)
            try require(made.succeeded, made.summary)
            unlink(try image(.a))
        })
        let report = try move(guest)
        XCTAssertEqual(report.disks, ["vda": Self.images + "/ledger.raw"])
        XCTAssertTrue(report.warnings.contains { $0.contains("hostB lacks \(Self.images)/a.iso: drive hdc of the shadow is empty") }, "\(report.warnings)")
        let drives = try hosts.virsh(.b, "domblklist", guest.name).out.split(separator: "\n").map { $0.split(separator: " ").map(String.init) }
        XCTAssertTrue(drives.contains(["hdc", "-"]), "\(drives)")
        try assertInOrder(guest)
    }

    /// With options that change how memory is sent.
    func testParallelAndCompressed() throws {
        let guest = try freshDiskGuest()
        try move(guest, ["--parallel", "2", "--no-auto-converge"])
        try move(guest, ["--compress", "--pool", "default", "--bandwidth", "200"])
        try assertInOrder(guest)
    }

    /// Certificates for QEMU on both hosts, which name them by the address in the URI of `peers`.
    private func makeCertificates() throws {
        let hosts = try hosts
        func tool(_ words: String...) throws {
            let made = try runCommand(["certtool"] + words, limit: 60)
            try require(made.succeeded, "certtool \(words.joined(separator: " ")): \(made.summary)")
        }
        func template(_ name: String, _ lines: String) throws -> String {
            let path = "\(hosts.folder)/\(name).info"
            try lines.write(toFile: path, atomically: true, encoding: .utf8)
            return path
        }
        let authority = hosts.folder + "/ca"
        try tool("--generate-privkey", "--ecc", "--outfile", authority + ".key")
        try tool("--generate-self-signed", "--load-privkey", authority + ".key", "--outfile", authority + ".pem", "--template", template("ca", "cn = test\nca\ncert_signing_key\n"))
        for host in Host.allCases {
            let folder = "\(hosts.folder)/pki-\(host.rawValue)"
            try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
            try FileManager.default.copyItem(atPath: authority + ".pem", toPath: folder + "/ca-cert.pem")
            let info = try template(host.rawValue, "cn = \(host.name)\ndns_name = \(host.name)\nip_address = \(host.address)\ntls_www_server\ntls_www_client\nsigning_key\nencryption_key\n")
            for role in ["server", "client"] {
                try tool("--generate-privkey", "--key-type", "rsa", "--bits", "2048", "--outfile", "\(folder)/\(role)-key.pem")
                try tool("--generate-certificate", "--load-ca-certificate", authority + ".pem", "--load-ca-privkey", authority + ".key", "--load-privkey", "\(folder)/\(role)-key.pem",
                         "--template", info, "--outfile", "\(folder)/\(role)-cert.pem")
            }
            let file = hosts.root(host) + "/etc/libvirt/qemu.conf"
            let before = FileManager.default.contents(atPath: file).map { String(decoding: $0, as: UTF8.self) } ?? ""
            try (before + "\nmigrate_tls_x509_cert_dir = \"\(folder)\"\nmigrate_tls_x509_verify = 1\n").write(toFile: file, atomically: true, encoding: .utf8)
            // QEMU may run as another user.
            _ = try runCommand(["chmod", "-R", "a+rX", folder], limit: 5)
            try hosts.hosts("libvirtd-stop", host.rawValue)
            try hosts.hosts("libvirtd-start", host.rawValue)
        }
    }

    func testEncrypted() throws {
        guard TwoHosts.isInstalled("certtool") else { throw XCTSkip("no certtool (Debian: apt install gnutls-bin)") }
        let guest = try freshDiskGuest(prepare: { try makeCertificates() })
        try move(guest, ["--tls"])
        try move(guest, ["--tls"])
        try assertInOrder(guest)
    }

    // MARK: A guest that dirties more than is sent

    private static let slow = ["--bandwidth", "5", "--no-auto-converge"]

    private func heavyGuest() throws -> LedgerGuest {
        let guest = try freshDiskGuest(prepare: {
            try FileManager.default.removeItem(atPath: image(.a))
            try FileManager.default.copyItem(atPath: TwoHosts.guests.get() + "/ledger-heavy.img", toPath: image(.a))
        })
        // It leaves its disk alone.
        guest.hasDisks = false
        return guest
    }

    func testCtrlCLeavesTheGuestHereAndNothingThere() throws {
        let guest = try heavyGuest()
        let begin = Clock.seconds
        let err = try hosts.folder + "/cancel.err"
        let child = try ChildProcess([TwoHosts.script, "exec", hosts.folder, "A", TwoHosts.binary, "swap", guest.name, "--to", "hostB"] + Self.slow, out: err, err: err)
        func text() -> String { FileManager.default.contents(atPath: err).map { String(decoding: $0, as: UTF8.self) } ?? "" }
        try waitUntil("memory is copied (\(text()))", limit: 30) { text().contains("Copying memory") }
        XCTAssertEqual(try volumes(.b), ["ledger.img"])
        assertRefused(try swapTo(guest), "is being moved to hostB")
        assertRefused(try guest.tryToProtect(), "is being moved to hostB")
        let pressed = Clock.seconds
        child.signal(SIGINT)
        XCTAssertEqual(child.wait(limit: 20), 130)
        report("live migration cancelled \(Int(pressed - begin)) s after it began: over in \(Int((Clock.seconds - pressed) * 1000)) ms")
        XCTAssertTrue(text().contains("was cancelled. The guest runs on hostA, as before"), text())
        XCTAssertEqual(try hosts.domainState(.a, guest.name), "running")
        XCTAssertNil(try hosts.domainState(.b, guest.name))
        XCTAssertEqual(try volumes(.b), [])
        XCTAssertEqual(try records(.a) + records(.b), [])
        try guest.waitForTicks(20)
        // Nothing of the attempt stands in the way of the next one.
        try move(guest, ["--downtime", "5s"])
        try guest.waitForTicks(20)
        try guest.checkNeverTwice()
    }

    func testItIsToldWhenItDoesNotConverge() throws {
        let guest = try heavyGuest()
        let result = try swapTo(guest, Self.slow + ["--timeout", "18"])
        assertRefused(result, "was cancelled after 18s", "does not converge; use a --downtime above", "--postcopy or --auto-converge", "The guest runs on hostA")
        XCTAssertTrue(try hosts.service(.a).logText.contains("does not converge"))
        XCTAssertEqual(try hosts.domainState(.a, guest.name), "running")
        XCTAssertEqual(try volumes(.b), [])
        XCTAssertTrue(try hosts.virsh(.a, "migrate-getmaxdowntime", guest.name).out.contains("300"))
        // What it proposes helps.
        let there = try move(guest, Self.slow + ["--postcopy"])
        XCTAssertEqual(there.mode, "postcopy")
        try guest.waitForTicks(20)
        let back = try move(guest, Self.slow + ["--downtime", "5s"])
        XCTAssertEqual(back.mode, "precopy")
        try guest.waitForTicks(20)
        try guest.checkNeverTwice()
        report("live migration at 5 MiB/s of a guest that dirties 8 MiB over and over: with post-copy \(Int(there.totalMs)) ms, downtime \(there.downtimeMs.map { "\(Int($0))" } ?? "?") ms; "
            + "with --downtime 5s \(Int(back.totalMs)) ms, downtime \(back.downtimeMs.map { "\(Int($0))" } ?? "?") ms")
    }

    // MARK: Dry run

    func testDryRunPredictsAndTouchesNothing() throws {
        let guest = try heavyGuest()
        let first = try decode(Forecast.self, swapTo(guest, ["--dry-run", "--format", "json"]))
        XCTAssertEqual(first.memoryBytes, 64 << 20)
        XCTAssertEqual(first.bandwidthSource, "assumed")
        XCTAssertGreaterThanOrEqual(first.dirtyBytesPerSecond, 4 << 20, "It writes 2000 pages a tick")
        XCTAssertEqual(first.converges, "yes", "8 MiB at 112 MiB/s fit into 300 ms")
        let slow = try decode(Forecast.self, swapTo(guest, Self.slow + ["--dry-run", "--format", "json"]))
        XCTAssertEqual(slow.bandwidthSource, "option")
        XCTAssertEqual(slow.converges, "no")
        XCTAssertNil(slow.durationMs)
        let words = try swapTo(guest, Self.slow + ["--dry-run"])
        XCTAssertTrue(words.out.contains("as --bandwidth says") && words.out.contains("no: the guest dirties memory faster than it can be sent"), words.summary)
        XCTAssertEqual(try volumes(.b), [])
        XCTAssertNil(try hosts.domainState(.b, guest.name))
        let moved = try move(guest)
        let again = try decode(Forecast.self, swapTo(guest, ["--dry-run", "--format", "json"]))
        XCTAssertEqual(again.bandwidthSource, "assumed", "Host B has sent nothing yet")
        try move(guest)
        let known = try decode(Forecast.self, swapTo(guest, ["--dry-run", "--format", "json"]))
        XCTAssertEqual(known.bandwidthSource, "earlier")
        report("live migration, dry run: \(first.dirtyBytesPerSecond >> 20) MiB/s dirtied; predicted at 1 Gbit/s \(first.durationMs.map { "\(Int($0))" } ?? "?") ms and "
            + "\((first.bytes ?? 0) >> 20) MiB, taken \(Int(moved.totalMs)) ms and \(moved.bytes >> 20) MiB; bandwidth of this network \(known.bandwidthBytesPerSecond >> 20) MiB/s")
    }

    // MARK: Refusals

    func testRefusals() throws {
        let guest = try freshDiskGuest()
        assertRefused(try swapTo(guest, host: "hostC"), "Unknown host hostC", "hostB")
        assertRefused(try hosts.shadowVirt(.a, "swap", "nosuchdomain", "--to", "hostB"), "There is no domain nosuchdomain")
        assertRefused(try swapTo(guest, ["--uri", "qemu+tcp://10.77.0.2:1/system"]), "failed; the guest runs on hostA, as before", "virsh -c qemu+tcp://10.77.0.2:1/system")
        assertRefused(try swapTo(guest, ["--pool", "nosuchpool"]), "hostB has no storage pool nosuchpool")
        // A file that nobody there knows.
        try Data("precious".utf8).write(to: URL(fileURLWithPath: image(.b)))
        assertRefused(try swapTo(guest), "exists on hostB, and nothing there knows it", "--discard-stale")
        XCTAssertEqual(try Data(contentsOf: URL(fileURLWithPath: image(.b))), Data("precious".utf8))
        try FileManager.default.removeItem(atPath: image(.b))
        // The domain, defined there.
        let defined = try hosts.virsh(.b, "define", hosts.folder + "/\(guest.name).xml")
        try require(defined.succeeded, defined.summary)
        assertRefused(try swapTo(guest), "is defined on hostB already", "virsh undefine")
        _ = try hosts.virsh(.b, "undefine", guest.name)
        // One that has a shadow, with an option that only a live migration has: without, it would be swapped.
        try guest.protect()
        assertRefused(try swapTo(guest, ["--pool", "default"]), "is protected, to hostB", "shadow-virt unprotect \(guest.name)")
        assertRefused(try hosts.shadowVirt(.b, "swap", guest.name, "--to", "hostA"), "holds the shadow of \(guest.name)")
        try guest.unprotect()
        XCTAssertEqual(try records(.a) + records(.b), [])
        try assertInOrder(guest)
    }

    /// Libvirt refuses what its own rules forbid; its words are passed on, and nothing is left.
    func testLibvirtRefuses() throws {
        let guest = try freshDiskGuest(edit: { $0.replacingOccurrences(of: "<target dev='vda'", with: "<shareable/><target dev='vda'") }, prepare: {
            try FileManager.default.linkItem(atPath: image(.a), toPath: image(.b))
        })
        assertRefused(try swapTo(guest), "Unsafe migration", "cache='none'", "the guest runs on hostA, as before")
        XCTAssertEqual(try records(.a) + records(.b), [])
        XCTAssertNil(try hosts.domainState(.b, guest.name))
        try guest.waitForTicks(50)
    }

    func testThePeersServiceIsDown() throws {
        let guest = try freshDiskGuest()
        try hosts.service(.b).stop()
        let result = try swapTo(guest)
        try hosts.service(.b).start()
        try hosts.waitForService(.b)
        assertRefused(result, "Check that shadow-virt runs on hostB")
        XCTAssertTrue(guest.isTicking)
        XCTAssertEqual(try records(.a), [])
    }

    // MARK: What breaks on the way

    /// Libvirt goes on when our service dies; the next one finishes.
    func testTheServiceIsKilledOnTheWay() throws {
        let guest = try heavyGuest()
        try require(hosts.virsh(.a, "autostart", guest.name).succeeded, "virsh autostart")
        let out = try hosts.folder + "/killed.err"
        let child = try ChildProcess([TwoHosts.script, "exec", hosts.folder, "A", TwoHosts.binary, "swap", guest.name, "--to", "hostB"] + Self.slow, out: out, err: out)
        try waitUntil("memory is copied", limit: 30) { (FileManager.default.contents(atPath: out).map { String(decoding: $0, as: UTF8.self) } ?? "").contains("Copying memory") }
        try hosts.service(.a).kill()
        XCTAssertEqual(child.wait(limit: 20), 1)
        try hosts.waitForService(.a)
        XCTAssertEqual(try records(.a).count, 1)
        assertRefused(try swapTo(guest), "is being moved to hostB")
        // Now it may end.
        try hosts.virsh(.a, "migrate-setmaxdowntime", guest.name, "5000")
        try guest.followToOther(mayRepeat: 0, limit: 30)
        try waitUntil("the service has finished", limit: 20) { try records(.a).isEmpty && records(.b).isEmpty }
        XCTAssertTrue(try isSet("Autostart", .b, guest.name))
        try guest.waitForTicks(20)
        try guest.checkNeverTwice()
        // Its disk on host A is known as the former one.
        try move(guest, ["--downtime", "5s"])
    }

    /// The guest ends before it is over: what it ran on here counts, not the half of a copy there.
    func testTheGuestEndsOnTheWay() throws {
        let guest = try heavyGuest()
        let out = try hosts.folder + "/ended.err"
        let child = try ChildProcess([TwoHosts.script, "exec", hosts.folder, "A", TwoHosts.binary, "swap", guest.name, "--to", "hostB"] + Self.slow, out: out, err: out)
        func text() -> String { FileManager.default.contents(atPath: out).map { String(decoding: $0, as: UTF8.self) } ?? "" }
        try waitUntil("memory is copied", limit: 30) { text().contains("Copying memory") }
        try hosts.virsh(.a, "destroy", guest.name)
        XCTAssertEqual(child.wait(limit: 60), 1, text())
        XCTAssertTrue(text().contains("the guest ended on hostA meanwhile"), text())
        XCTAssertEqual(try hosts.domainState(.a, guest.name), "shut off")
        XCTAssertNil(try hosts.domainState(.b, guest.name))
        XCTAssertEqual(try volumes(.b), [])
        XCTAssertEqual(try records(.a) + records(.b), [])
        try guest.start(on: .a)
        try guest.waitForTicks(20)
    }

    /// The cable is cut: QEMU's connections break before libvirt's patience ends, so the guest never stands still; what was made at the other
    /// host goes once that can be asked.
    func testTheNetworkBreaksOnTheWay() throws {
        let guest = try heavyGuest()
        let out = try hosts.folder + "/cut.err"
        let child = try ChildProcess([TwoHosts.script, "exec", hosts.folder, "A", TwoHosts.binary, "swap", guest.name, "--to", "hostB"] + Self.slow, out: out, err: out)
        func text() -> String { FileManager.default.contents(atPath: out).map { String(decoding: $0, as: UTF8.self) } ?? "" }
        try waitUntil("memory is copied", limit: 30) { text().contains("Copying memory") }
        sleep(2)
        try hosts.hosts("cut")
        let begin = Clock.seconds
        var (silence, status) = (0.0, Int32?.none)
        while status == nil, Clock.seconds - begin < 90 {
            silence = max(silence, guest.serial.silence(.a))
            status = child.wait(limit: 0.05)
        }
        let took = Clock.seconds - begin
        try hosts.hosts("join")
        XCTAssertEqual(status, 1, text())
        XCTAssertLessThan(silence, 3, "The guest stood still while the network was away")
        XCTAssertTrue(text().contains("the guest runs on hostA, as before"), text())
        XCTAssertTrue(text().contains("hostB has not removed what it made for this"), text())
        XCTAssertEqual(try hosts.domainState(.a, guest.name), "running")
        report("live migration, cable cut: given up after \(Int(took)) s, longest silence of the guest \(Int(silence * 1000)) ms")
        try guest.waitForTicks(20)
        try waitUntil("libvirt on host B has noticed", limit: 60) { try hosts.domainState(.b, guest.name) == nil }
        try move(guest, ["--downtime", "5s"])
        XCTAssertEqual(try records(.a) + records(.b), [])
        try guest.waitForTicks(20)
        try guest.checkNeverTwice()
    }
}
