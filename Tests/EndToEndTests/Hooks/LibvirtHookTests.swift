import Foundation
import XCTest

/// The hook in the hands of a real libvirtd: calls arrive, and nothing that is wrong with the service hurts a guest.
final class LibvirtHookTests: XCTestCase {
    private static let xml = """
        <domain type='qemu'>
          <name>hooked</name>
          <uuid>5f1c5b0e-0000-4000-8000-0000000000aa</uuid>
          <memory unit='MiB'>32</memory>
          <os><type arch='x86_64' machine='pc'>hvm</type></os>
          <metadata><shadow:policy xmlns:shadow='https://shadow-virt.org/domain/1' engine='periodic'/></metadata>
        </domain>
        """

    func testStartStopRestoreReconnect() throws {
        let hosts = try TwoHosts(configuration: ["log_level = \"debug\""], withLedger: false)
        defer { for left in hosts.down() { XCTFail("Left behind: \(left)") } }
        try Self.xml.write(toFile: hosts.folder + "/hooked.xml", atomically: true, encoding: .utf8)
        func calls(since mark: Int = 0) -> [String] {
            hosts.service(.a).logText(since: mark).split(separator: "\n").compactMap { line in
                line.range(of: "libvirt's hook: hooked ").map { String(line[$0.upperBound...]) }
            }
        }
        @discardableResult
        func virsh(_ words: String...) throws -> Double {
            let result = try hosts.run(.a, ["virsh", "-q"] + words)
            try require(result.succeeded, "virsh \(words.joined(separator: " ")): \(result.summary)")
            return result.seconds * 1000
        }
        func expect(_ expected: [String], since mark: Int) throws {
            try waitUntil("the calls \(expected)", limit: 5) { calls(since: mark).count >= expected.count }
            // Since libvirt 10.5 the reason of a release comes with it.
            XCTAssertEqual(calls(since: mark).map { $0.split(separator: " ").prefix(2).joined(separator: " ") }, expected)
        }

        // libvirtd has looked for hooks already and found none.
        let installed = try hosts.shadowVirt(.a, "install", "--only", "hook", "--program", TwoHosts.binary)
        try require(installed.succeeded, "install: \(installed.summary)")
        XCTAssertTrue(installed.err.contains("libvirt had no hook until now"), installed.err)
        let createdWithout = try virsh("create", hosts.folder + "/hooked.xml")
        let destroyedWithout = try virsh("destroy", "hooked")
        let wordWithout = try wordOfCrash(hosts)
        XCTAssertEqual(calls(), [], "then `install` need not tell anybody to reload")

        let daemon = try XCTUnwrap(String(contentsOfFile: hosts.root(.a) + "/run/libvirt/libvirtd.pid", encoding: .utf8).split(separator: "\n").first)
        XCTAssertTrue(try hosts.run(.a, ["kill", "-HUP", String(daemon)]).succeeded)
        // The reload is over when libvirt answers again.
        usleep(500_000)
        var mark = hosts.service(.a).logMark
        let created = try virsh("create", hosts.folder + "/hooked.xml")
        try expect(["prepare begin", "start begin", "started begin"], since: mark)

        try virsh("destroy", "hooked")
        let word = try wordOfCrash(hosts)
        print("MEASURED libvirt's hook: libvirt tells of the end of a QEMU that was killed after \(Int(wordWithout)) ms without it, \(Int(word)) ms with it")
        // Two calls come before it, each within 100 ms.
        XCTAssertLessThan(word - wordWithout, 200)
        try virsh("create", hosts.folder + "/hooked.xml")
        try waitUntil("the calls", limit: 5) { calls().last?.hasPrefix("started") ?? false }

        mark = hosts.service(.a).logMark
        try virsh("save", "hooked", hosts.folder + "/hooked.save")
        try expect(["stopped end", "release end"], since: mark)
        mark = hosts.service(.a).logMark
        try virsh("restore", hosts.folder + "/hooked.save")
        try expect(["restore begin", "prepare begin", "start begin", "started begin"], since: mark)

        // A hook that fails on `reconnect` would cost the guest: with the service up, hanging, and gone.
        let qemu = try XCTUnwrap(hosts.qemu(.a, "hooked"))
        mark = hosts.service(.a).logMark
        try restartLibvirtd(hosts)
        try expect(["reconnect begin"], since: mark)
        let service = try XCTUnwrap(hosts.service(.a).pid)
        kill(service, SIGSTOP)
        defer { kill(service, SIGCONT) }
        try restartLibvirtd(hosts)
        XCTAssertEqual(hosts.qemu(.a, "hooked"), qemu, "the guest is gone after libvirtd's restart with a service that hangs")
        try virsh("destroy", "hooked")
        try virsh("create", hosts.folder + "/hooked.xml")
        kill(service, SIGCONT)
        try hosts.service(.a).stop()
        let second = try XCTUnwrap(hosts.qemu(.a, "hooked"))
        try restartLibvirtd(hosts)
        XCTAssertEqual(hosts.qemu(.a, "hooked"), second, "the guest is gone after libvirtd's restart without a service")
        let destroyed = try virsh("destroy", "hooked")
        print("MEASURED libvirt's hook: virsh create \(Int(createdWithout)) ms without it, \(Int(created)) ms with it; "
            + "destroy \(Int(destroyedWithout)) and \(Int(destroyed)) ms")
        XCTAssertTrue(try hosts.shadowVirt(.a, "uninstall", "--only", "hook", "--program", TwoHosts.binary).succeeded)
        XCTAssertFalse(FileManager.default.fileExists(atPath: hosts.root(.a) + "/etc/libvirt/hooks"))
    }

    /// Milliseconds from the end of a QEMU that is killed to libvirt's event, the least of four: what a busy machine adds comes and goes.
    private func wordOfCrash(_ hosts: TwoHosts) throws -> Double {
        try (0..<4).map { _ in
            let created = try hosts.virsh(.a, "create", hosts.folder + "/hooked.xml")
            try require(created.succeeded, "virsh create: \(created.summary)")
            let log = hosts.folder + "/events"
            let listener = try ChildProcess([TwoHosts.script, "exec", hosts.folder, "A", "stdbuf", "-oL", "virsh", "event", "--event", "lifecycle", "--timeout", "20"], out: log)
            defer { try? FileManager.default.removeItem(atPath: log) }
            // It says nothing when it listens; another client that has been served since then says so.
            usleep(300_000)
            let qemu = try XCTUnwrap(hosts.qemu(.a, "hooked"))
            let begin = DispatchTime.now().uptimeNanoseconds
            kill(qemu, SIGKILL)
            try waitUntil("libvirt's event", limit: 20, every: 0.001) { (FileManager.default.contents(atPath: log)?.isEmpty == false) }
            let elapsed = Double(DispatchTime.now().uptimeNanoseconds - begin) / 1e6
            XCTAssertEqual(listener.wait(limit: 20), 0)
            XCTAssertTrue(FileManager.default.contents(atPath: log).map { String(decoding: $0, as: UTF8.self) }?.contains("Stopped") ?? false)
            return elapsed
        }.min() ?? 0
    }

    private func restartLibvirtd(_ hosts: TwoHosts) throws {
        try hosts.hosts("libvirtd-stop", Host.a.rawValue)
        try hosts.hosts("libvirtd-start", Host.a.rawValue)
        // Guests are found again on a thread of libvirt's own.
        try waitUntil("libvirtd has its guest again", limit: 10) { try hosts.domainState(.a, "hooked") == "running" }
    }
}
