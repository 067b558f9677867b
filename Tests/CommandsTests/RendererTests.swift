import ControlProtocol
import Foundation
import Platform
import XCTest
@testable import Commands
@testable import ControlProtocol

final class RendererTests: XCTestCase {
    private let plain = Renderer(format: .table)

    func testStatusTable() throws {
        var shadow = Samples.domain("mail", .shadow, .degraded, reason: "Host b has not answered for 6 s")
        shadow.intervalMs = 640
        shadow.lastCommitAgeMs = 6300
        shadow.rpoMs = 6320
        let text = try plain.render(.status(Samples.status([Samples.domain(), shadow, Samples.syncing]), detail: false))
        XCTAssertEqual(text, """
            DOMAIN  ROLE     PEER    ENGINE      STATE      EPOCH  INTERVAL  PAUSE       LAG  LAST-COMMIT   RPO
            web1    primary  b       continuous  protected  12345      20ms  0.6ms  1/3.2MiB         12ms  32ms
            mail    shadow   b       continuous  degraded   12345     640ms      -  1/3.2MiB         6.3s  6.3s
                Host b has not answered for 6 s
            db      primary  host-c  periodic    syncing        0      1.5s      -      0/0B            -     -
                first copy: 412.0MiB of 1.0GiB (40 %)
                First protection

            """)
        XCTAssertEqual(try plain.render(.status(Samples.status([]), detail: false)), "")
    }

    func testStatusDetail() throws {
        var domain = Samples.domain(reason: "Interval raised: the peer lags")
        domain.intervalMs = 40
        XCTAssertEqual(try plain.render(.status(Samples.status([domain]), detail: true)), """
            Domain:            web1
            UUID:              8f8a7c1e-0000-4000-8000-000000000001
            Role:              primary
            Peer:              b
            Engine:            continuous
            State:             protected since 2024-05-01T10:00:00.000Z
            Reason:            Interval raised: the peer lags
            Epoch:             12345 captured, 12344 committed
            Interval:          40ms (configured 20ms)
            Epochs per second: 48.9
            Pause:             0.6ms median, 1.3ms p99
            Lag:               1 epoch, 3.2MiB
            Last commit:       12ms ago
            RPO:               32ms
            Dirtied:           4.0GiB
            Sent:              1.0GiB (25 % of what was dirtied)

            """)
        let fresh = try plain.render(.status(Samples.status([Samples.syncing]), detail: true))
        XCTAssertTrue(fresh.contains("First copy:        412.0MiB of 1.0GiB (40 %)\n"), fresh)
        XCTAssertTrue(fresh.contains("Last commit:       none yet\nRPO:               -\n"), fresh)
        XCTAssertFalse(try plain.render(.status(Samples.status([Samples.domain("x", .shadow)]), detail: true)).contains("Pause:"))
    }

    private var withDisks: DomainStatus {
        var domain = Samples.domain("web1", .primary, .syncing)
        domain.disks = [DiskStatus(target: "vda", replica: "/pool/web1.img", state: .ready, syncedBytes: 4 << 30, totalBytes: 4 << 30),
                        DiskStatus(target: "vdb", replica: "/pool/b.img", state: .syncing, syncedBytes: 1 << 30, totalBytes: 4 << 30),
                        DiskStatus(target: "vdc", state: .waiting), DiskStatus(target: "vdd", state: .failed), DiskStatus(target: "vde", state: .shared)]
        domain.diskBytesSent = 3 << 20
        domain.diskWrites = 12
        return domain
    }

    func testDisks() throws {
        let detail = try plain.render(.status(Samples.status([withDisks]), detail: true))
        XCTAssertTrue(detail.hasSuffix("""
            Disk vda:          ready, 4.0GiB, replica /pool/web1.img
            Disk vdb:          1.0GiB of 4.0GiB (25 %), replica /pool/b.img
            Disk vdc:          waiting
            Disk vdd:          failed
            Disk vde:          shared
            Disk writes:       12, 3.0MiB sent

            """), detail)
        let list = try plain.render(.status(Samples.status([withDisks]), detail: false))
        XCTAssertTrue(list.hasSuffix("    disk vdb: 1.0GiB of 4.0GiB (25 %)\n    disk vdd: failed\n"), list)
    }

    func testDisksInJSON() throws {
        let text = try Renderer(format: .json).render(.status(Samples.status([withDisks, Samples.domain()]), detail: true))
        let report = try XCTUnwrap(JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
        let domains = try XCTUnwrap(report["domains"] as? [[String: Any]])
        XCTAssertEqual(domains[0]["disk_bytes_sent"] as? Int, 3 << 20)
        XCTAssertEqual(domains[0]["disk_writes"] as? Int, 12)
        let disks = try XCTUnwrap(domains[0]["disks"] as? [[String: Any]])
        XCTAssertEqual(disks.map { $0["state"] as? String }, ["ready", "syncing", "waiting", "failed", "shared"])
        XCTAssertEqual(Set(disks[0].keys), ["target", "replica", "state", "synced_bytes", "total_bytes"])
        // Without disks the answer is what it always was.
        XCTAssertTrue(Set(domains[1].keys).isDisjoint(with: ["disks", "disk_bytes_sent", "disk_writes"]))
    }

    func testDoctor() throws {
        XCTAssertEqual(try plain.render(.doctor(Samples.doctor)), """
            ok       kvm           /dev/kvm works
            FAILED   machine-type  pc-q35-9.9 is not known on b
                       Use a machine type that both hosts have: `virsh capabilities` on b
                       lists them
            warning  memory        b has 1.0GiB left

            """)
    }

    func testHandover() throws {
        XCTAssertEqual(try plain.render(.handover(Samples.handover)),
                       "web1 now runs on b (from a): epoch 77, nothing lost, outage 48ms, activation 12ms")
        var lost = Samples.handover
        lost.epochsLost = 1
        XCTAssertTrue(try plain.render(.handover(lost)).contains("1 epoch lost"))
        lost.epochsLost = 2
        XCTAssertTrue(try plain.render(.handover(lost)).contains("2 epochs lost"))
    }

    func testColour() throws {
        let text = try Renderer(format: .table, colour: true).render(.status(Samples.status([Samples.domain(), Samples.domain("x", .primary, .degraded)]), detail: false))
        XCTAssertTrue(text.contains("\u{1B}[32mprotected\u{1B}[0m  12345"), text)
        XCTAssertTrue(text.contains("\u{1B}[1;31mdegraded\u{1B}[0m   12345"), text)
    }

    func testJSON() throws {
        let json = Renderer(format: .json, colour: true)
        XCTAssertEqual(try json.render(.handover(Samples.handover)), """
            {
              "activation_ms" : 12.1,
              "domain" : "web1",
              "epoch" : 77,
              "epochs_lost" : 0,
              "from" : "a",
              "outage_ms" : 48.2,
              "schema" : 1,
              "to" : "b"
            }
            """)
        XCTAssertEqual(try json.render(.done("ok")), "{\n  \"done\" : \"ok\",\n  \"schema\" : 1\n}")
        XCTAssertEqual(try json.render(.failure(ControlFailure("m", advice: "a"))),
                       "{\n  \"failure\" : {\n    \"advice\" : \"a\",\n    \"message\" : \"m\"\n  },\n  \"schema\" : 1\n}")
        for report in [Report.status(Samples.status([Samples.domain()]), detail: false), .doctor(Samples.doctor)] {
            let object = try JSONSerialization.jsonObject(with: Data(try json.render(report).utf8)) as? [String: Any]
            XCTAssertEqual(object?["schema"] as? Int, 1)
        }
    }

    func testWhatOthersChoseCannotMoveTheCursor() throws {
        var domain = Samples.domain("a\u{1B}[2Jb", reason: "one\ntwo\u{202E}")
        domain.peer = "\u{9B}31m"
        for detail in [true, false] {
            let text = try plain.render(.status(Samples.status([domain]), detail: detail))
            XCTAssertTrue(text.contains("a?[2Jb") && text.contains("one?two?") && text.contains("?31m"), text)
            XCTAssertFalse(text.unicodeScalars.contains { $0.value == 0x1B || $0.value == 0x9B })
        }
    }

    func testAbsurdNumbersDoNotTrap() throws {
        var domain = Samples.domain()
        for value in [1e300, -1, .infinity, -.infinity, .nan, 0] as [Double] {
            domain.intervalMs = value
            domain.pauseMsMedian = value
            domain.pauseMsP99 = value
            domain.epochsPerSecond = value
            domain.rpoMs = value
            domain.lastCommitAgeMs = value
            domain.lagBytes = .max
            domain.bytesSent = .max
            for detail in [true, false] { _ = try plain.render(.status(Samples.status([domain]), detail: detail)) }
        }
    }

    func testQuantities() {
        for (milliseconds, text) in [(0, "0ms"), (0.04, "0ms"), (0.62, "0.6ms"), (9.94, "9.9ms"), (9.96, "10ms"), (999.4, "999ms"), (999.6, "1s"), (1500, "1.5s"),
                                     (59_940, "59.9s"), (59_960, "1m00s"), (200_000, "3m20s"), (7_500_000, "2h05m"), (273_600_000, "3d04h"), (1e14, "for ever"),
                                     (-1, "-"), (.nan, "-")] as [(Double, String)] {
            XCTAssertEqual(Quantity.duration(milliseconds: milliseconds), text)
        }
        for (bytes, text) in [(0, "0B"), (1023, "1023B"), (1024, "1.0KiB"), (1_048_575, "1.0MiB"), (3_355_443, "3.2MiB"), (.max, "16.0EiB")] as [(UInt64, String)] {
            XCTAssertEqual(Quantity.bytes(bytes), text)
        }
        XCTAssertNil(Quantity.percent(1, of: 0))
        XCTAssertEqual(Quantity.percent(3, of: 2), "100 %")
    }

    func testProgress() {
        let harness = Harness()
        var written: [String] = []
        let sink = Sink()
        let step = ControlResponse.Progress("Copying web1", bytesDone: 1 << 20, bytesTotal: 4 << 20)
        // No terminal: a line at first, then one every 5 s, and none that repeats the last.
        let printer = ProgressPrinter(sink.output(terminal: false), quiet: false)
        let start = MonotonicTime.now
        printer.show(step, now: start)
        printer.show(.init("Copying web1", bytesDone: 2 << 20, bytesTotal: 4 << 20), now: start.adding(milliseconds: 4999))
        printer.show(.init("Copying web1", bytesDone: 3 << 20, bytesTotal: 4 << 20), now: start.adding(milliseconds: 5001))
        printer.show(.init("Copying web1", bytesDone: 3 << 20, bytesTotal: 4 << 20), now: start.adding(milliseconds: 20000))
        printer.clear()
        written.append(sink.text)
        XCTAssertEqual(written, ["Copying web1: 1.0MiB of 4.0MiB (25 %)\nCopying web1: 3.0MiB of 4.0MiB (75 %)\n"])
        // What must be read is not left out because something else was said just before.
        printer.show(.init("--force: what it did is lost", isNotice: true), now: start.adding(milliseconds: 20001))
        XCTAssertTrue(sink.text.hasSuffix("--force: what it did is lost\n"), sink.text)
        // Nor is it said again as progress.
        let said = sink.text
        printer.show(.init("--force: what it did is lost"), now: start.adding(milliseconds: 40000))
        XCTAssertEqual(sink.text, said)
        // A terminal: one line that changes and goes away.
        let terminal = ProgressPrinter(sink.output(terminal: true), quiet: false)
        terminal.show(step)
        terminal.show(.init("Starting\nit"))
        terminal.clear()
        terminal.clear()
        XCTAssertEqual(sink.text, "\rCopying web1: 1.0MiB of 4.0MiB (25 %)\u{1B}[K\rStarting?it\u{1B}[K\r\u{1B}[K")
        ProgressPrinter(sink.output(terminal: true), quiet: true).show(step)
        XCTAssertEqual(sink.text, "")
        withExtendedLifetime(harness) {}
    }
}

/// Collects stderr.
private final class Sink: @unchecked Sendable {
    private var bytes: [UInt8] = []

    func output(terminal: Bool) -> Output {
        bytes = []
        return Output(outIsTerminal: terminal, errorIsTerminal: terminal, environment: [:], out: { _ in 0 }, error: { [self] in
            bytes += $0
            return 0
        })
    }

    var text: String { String(decoding: bytes, as: UTF8.self) }
}
