import Foundation
import XCTest
@testable import Commands
@testable import ControlProtocol

/// `kpi --inside`, `health --host`, `diagnose --list` and `--fetch`.
final class InsideCommandTests: XCTestCase {
    private var inside: GuestInside {
        var inside = GuestInside(host: "a", domain: "web1", uuid: "8f8a7c1e-0000-4000-8000-000000000001", time: "2024-05-01T10:00:00.000Z")
        inside.agent = "7.2.22"
        (inside.load1m, inside.tasks, inside.tasksRunning, inside.tasksBlocked) = (0.25, 112, 2, 0)
        inside.processes = [GuestInside.Process(pid: 811, parent: 1, name: "postgres\u{1B}[2J", state: "S", threads: 1, cpuSeconds: 12.5, residentBytes: 210 << 20)]
            + (0..<20).map { GuestInside.Process(pid: 900 + $0, parent: 811, name: "worker", state: "D", threads: 2, cpuSeconds: 0, residentBytes: 4096) }
        inside.libraries = [GuestInside.Library(path: "/usr/lib/libc.so.6", processes: 21, isDeleted: false), GuestInside.Library(path: "/usr/lib/libssl.so.3", processes: 2, isDeleted: true)]
        inside.fileSystems = [GuestInside.FileSystem(mountpoint: "/", type: "ext4", usedBytes: 1e9, totalBytes: 8e9), GuestInside.FileSystem(mountpoint: "/x", type: nil, usedBytes: -1e300, totalBytes: nil)]
        inside.users = [GuestInside.User(name: "root", since: "2024-05-01T09:00:00.000Z")]
        inside.journal = ["2024-05-01T09:59:00+0000 web1 kernel: I/O error"]
        inside.notes = ["Users: odd"]
        return inside
    }

    private func run(_ words: [String], request: String, _ fill: (inout ControlResponse) -> Void) throws -> Outcome {
        var response = ControlResponse()
        fill(&response)
        let service = try FakeService(response)
        let outcome = Harness().run(words + ["--socket", service.path])
        XCTAssertEqual(service.requests, [request])
        return outcome
    }

    func testInside() throws {
        let outcome = try run(["kpi", "web1", "--inside"], request: #"{"domain":"web1","inside":true,"verb":"kpi"}"#) { $0.inside = inside }
        XCTAssertEqual(outcome.code, 0)
        XCTAssertTrue(outcome.out.hasPrefix("""
            Domain:  web1 on a
            Agent:   qemu-ga 7.2.22
            Tasks:   112, 2 running, 0 waiting for storage, load 0.25
            Note:    Users: odd

            PID  PARENT  STATE  THREADS
            """), outcome.out)
        for part in ["postgres?[2J", "and 6 processes\n", "/usr/lib/libssl.so.3 (replaced since)", "ext4", "root", "kernel: I/O error"] {
            XCTAssertTrue(outcome.out.contains(part), "\(part) in \(outcome.out)")
        }
        let json = try run(["kpi", "web1", "--inside", "--format", "json"], request: #"{"domain":"web1","inside":true,"verb":"kpi"}"#) { $0.inside = inside }
        XCTAssertEqual(try JSONDecoder().decode(GuestInside.self, from: Data(json.out.utf8)), inside)
    }

    func testUsage() {
        for (words, expected) in [(["kpi", "--inside"], "needs a DOMAIN"), (["kpi", "web1", "--inside", "--since", "1h"], "exclude each other"),
                                  (["diagnose", "--fetch", "x"], "needs a HOST"), (["diagnose", "a", "--fetch", "x", "--list"], "exclude each other")] {
            let outcome = Harness().run(words)
            XCTAssertEqual(outcome.code, 64, "\(words)")
            XCTAssertTrue(outcome.err.contains(expected), outcome.err)
        }
    }

    func testBundles() throws {
        let list = BundleList(host: "b", folder: "/var/lib/shadow-virt/diagnose", bundles: [
            BundleInfo(name: "b-20261121T185119948.tar.gz", bytes: 123_456, time: "2026-11-21T18:51:20.000Z"),
            BundleInfo(name: "a-20261121T185119948.tar.gz", bytes: 5, time: "2026-11-21T18:51:21.000Z", from: "a"),
        ])
        let outcome = try run(["diagnose", "b", "--list"], request: #"{"list":true,"to":"b","verb":"diagnose"}"#) { $0.bundles = list }
        XCTAssertEqual(outcome.code, 0)
        XCTAssertTrue(outcome.out.contains("b-20261121T185119948.tar.gz") && outcome.out.contains("  a\n"), outcome.out)
        XCTAssertTrue(outcome.err.contains("In /var/lib/shadow-virt/diagnose on b"), outcome.err)
        let fetched = try run(["diagnose", "b", "--fetch", "b-1.tar.gz"], request: #"{"bundle":"b-1.tar.gz","to":"b","verb":"diagnose"}"#) { $0.done = "Fetched /x" }
        XCTAssertEqual(fetched.out, "Fetched /x\n")
    }

    func testHealthOfAnotherHost() throws {
        let outcome = try run(["health", "--host", "b"], request: #"{"to":"b","verb":"health"}"#) { $0.health = HealthReport(host: "b", time: "2024-05-01T10:00:09.000Z") }
        XCTAssertEqual(outcome.code, 0)
        XCTAssertTrue(outcome.out.hasPrefix("Host:    b\n"), outcome.out)
    }
}
