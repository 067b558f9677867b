import Foundation
import Platform
import XCTest
@testable import Commands
@testable import ControlProtocol

final class SwapCommandTests: XCTestCase {
    private let report = MigrationReport(domain: "web1", from: "a", to: "b", mode: .precopy, totalMs: 2345, downtimeMs: 41, memoryBytes: 100 << 20, diskBytes: 1 << 30,
                                         passes: 3, persistent: true, autostart: true, disks: ["vda": "/pool/web1.img"], warnings: ["Look at this"])

    /// The request that a command line sends.
    private func request(_ words: String...) throws -> ControlRequest {
        let service = try FakeService(ControlResponse(migration: report))
        let outcome = Harness().run(["swap", "web1"] + words + ["--socket", service.path])
        XCTAssertEqual(outcome.code, 0, outcome.err)
        return try ControlCodec.decode(ControlRequest.self, from: Array(XCTUnwrap(service.requests.first).utf8))
    }

    func testOptionsBecomeTheRequest() throws {
        let plain = try request("--to", "b")
        XCTAssertEqual(plain.verb, .swap)
        XCTAssertEqual(plain.to, "b")
        XCTAssertEqual(plain.migration, MigrationOptions())
        let full = try request("--to", "b", "--bandwidth", "500", "--downtime", "1s", "--no-auto-converge", "--postcopy", "--parallel", "4", "--compress", "--tls",
                               "--timeout", "10m", "--uri", "qemu+tls://b/system", "--pool", "fast", "--discard-stale", "--dry-run")
        var options = MigrationOptions()
        options.bandwidthBytesPerSecond = 500 << 20
        options.downtimeMs = 1000
        options.autoConverge = false
        (options.postcopy, options.compress, options.tls, options.dryRun) = (true, true, true, true)
        options.parallel = 4
        options.timeoutSeconds = 600
        options.uri = "qemu+tls://b/system"
        XCTAssertEqual(full.migration, options)
        XCTAssertEqual(full.pool, "fast")
        XCTAssertEqual(full.discardStale, true)
        XCTAssertEqual(try request("--to", "b", "--bandwidth", "1GiB/s").migration?.bandwidthBytesPerSecond, 1 << 30)
        XCTAssertEqual(try request("--to", "b", "--downtime", "50").migration?.downtimeMs, 50)
        XCTAssertEqual(try request("--to", "b", "--timeout", "90").migration?.timeoutSeconds, 90)
    }

    func testMisuse() {
        for (words, part) in [(["--dry-run"], "needs --to HOST"), (["--bandwidth", "5"], "needs --to HOST"), (["--to", "b", "--bandwidth", "0"], "MiB/s"),
                              (["--to", "b", "--bandwidth", "64KiB/s"], "less than 1MiB/s"), (["--to", "b", "--bandwidth", "fast"], "is no rate"),
                              (["--to", "b", "--downtime", "0"], "1ms to 2000s"), (["--to", "b", "--downtime", "1d"], "1ms to 2000s"),
                              (["--to", "b", "--timeout", "0.5s"], "1s to 7 days"), (["--to", "b", "--parallel", "0"], "1 to 255"),
                              (["--to", "b", "--auto-converge", "--no-auto-converge"], "exclude each other"), (["--to", "b", "--uri", "b"], "no libvirt URI")] {
            let outcome = Harness().run(["swap", "web1"] + words + ["--socket", "/nonexistent"])
            XCTAssertEqual(outcome.code, 64, "\(words)")
            XCTAssertTrue(outcome.err.contains(part), "'\(part)' is not in \(outcome.err)")
        }
    }

    func testWhatIsPrinted() throws {
        let service = try FakeService(ControlResponse(migration: report))
        let text = Harness().run("swap", "web1", "--to", "b", "--socket", service.path).out
        XCTAssertEqual(text, """
            web1 now runs on b (from a): live migration in 2.3s, downtime 41ms, 100.0MiB of memory and 1.0GiB of disks
            Defined on b with autostart, and not on a any more
            Disk vda: /pool/web1.img on b
            Look at this

            """)
        let json = Harness().run("swap", "web1", "--to", "b", "--format", "json", "--socket", service.path).out
        for key in ["\"total_ms\" : 2345", "\"downtime_ms\" : 41", "\"bytes\" : 1178599424", "\"mode\" : \"precopy\"", "\"schema\" : 1"] {
            XCTAssertTrue(json.contains(key), "\(key) is not in \(json)")
        }
    }

    func testAForecast() throws {
        let forecast = MigrationForecast(domain: "web1", from: "a", to: "b", memoryBytes: 4 << 30, residentBytes: 1 << 30, diskBytes: 0, dirtyBytesPerSecond: 0,
                                         bandwidthBytesPerSecond: 112 << 20, bandwidthSource: .assumed, downtimeLimitMs: 300, converges: .yes, durationMs: 9200,
                                         downtimeMs: 12, bytes: 1 << 30, throttlePercent: 0, warnings: [])
        let service = try FakeService(ControlResponse(forecast: forecast))
        let out = Harness().run("swap", "web1", "--to", "b", "--dry-run", "--socket", service.path).out
        for part in ["assumed: 1 Gbit/s", "below 1MiB/s", "Duration:          about 9.2s, and", "Converges:         yes"] { XCTAssertTrue(out.contains(part), out) }
        XCTAssertTrue(Harness().run("swap", "web1", "--to", "b", "--dry-run", "--format", "json", "--socket", service.path).out.contains("\"bandwidth_source\" : \"assumed\""))
    }

    /// The first Ctrl-C asks the service to cancel and waits for its word.
    func testInterruptCancels() throws {
        let path = "/tmp/shadow-virt-\(UUID().uuidString.prefix(8)).sock"
        let listener = try ControlSocket.listen(path: path)
        defer { unlink(path) }
        let number = listener.release()
        let seen = Guarded<[ControlRequest]>([])
        startThread("fake-service") {
            let listener = Descriptor(owning: number)
            guard let client = try? acceptConnection(listener.raw, until: nil) else { return }
            let channel = LineChannel(client)
            for _ in 0..<2 {
                guard let line = try? channel.readLine(deadline: .now.adding(milliseconds: 10_000)), let request = try? ControlCodec.decode(ControlRequest.self, from: line) else { return }
                let count = seen.change { $0.append(request); return $0.count }
                guard count == 1 else { break }
                try? channel.writeLine((try? ControlCodec.encode(ControlResponse(progress: .init("Copying memory")))) ?? [], deadline: nil)
                kill(getpid(), SIGINT)
            }
            try? channel.writeLine((try? ControlCodec.encode(ControlResponse(failure: ControlFailure("The migration was cancelled. The guest runs on a")))) ?? [], deadline: nil)
        }
        let outcome = Harness().run("swap", "web1", "--to", "b", "--socket", path)
        XCTAssertEqual(outcome.code, 130)
        XCTAssertTrue(outcome.err.hasSuffix("error: The migration was cancelled. The guest runs on a\n"), outcome.err)
        XCTAssertEqual(seen.read { $0.map(\.verb) }, [.swap, .cancel])
    }
}
