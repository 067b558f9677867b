import Foundation
import Glibc
import Platform
import XCTest
@testable import Commands
@testable import ControlProtocol

final class TopTests: XCTestCase {
    private let start = MonotonicTime(nanoseconds: 1_000_000_000)

    private func snapshot(_ domains: [DomainStatus], after seconds: Double = 0) -> TopTable.Snapshot {
        TopTable.Snapshot(status: Samples.status(domains), at: start.adding(milliseconds: seconds * 1000))
    }

    private func domain(_ name: String = "web1", _ role: Role = .primary, _ state: ProtectionState = .protected, epochs: UInt64, _ more: (inout DomainStatus) -> Void = { _ in }) -> DomainStatus {
        var domain = Samples.domain(name, role, state)
        var counters = ProtectionCounters()
        counters.epochsCaptured = epochs
        counters.pauseMsTotal = Double(epochs) * 2
        domain.counters = counters
        domain.committedEpoch = epochs
        more(&domain)
        return domain
    }

    // MARK: Rates

    func testRates() throws {
        let before = snapshot([domain(epochs: 1000) { ($0.bytesDirtied, $0.bytesSent, $0.diskBytesSent) = (0, 1 << 20, 5) }])
        let now = snapshot([domain(epochs: 1100) { ($0.bytesDirtied, $0.bytesSent, $0.diskBytesSent) = (8 << 20, 3 << 20, 4005) }], after: 2)
        let row = try XCTUnwrap(TopTable.rows(before, now, sortedBy: .name).first)
        XCTAssertEqual([row.epochs, row.dirtied, row.sent, row.disk], [50, 4_194_304, 1_048_576, 2000])
        XCTAssertEqual(try XCTUnwrap(row.stopped), 0.1, accuracy: 1e-9)
    }

    func testWhatCannotBeTold() throws {
        let now = snapshot([domain(epochs: 7)], after: 1)
        for before in [nil, snapshot([]), snapshot([domain("other", epochs: 0) { $0.uuid = "x" }]), snapshot([domain(epochs: 5000) { $0.bytesSent = 1 << 40; $0.bytesDirtied = 1 << 40 }])] {
            let row = try XCTUnwrap(TopTable.rows(before, now, sortedBy: .name).first)
            XCTAssertNil(row.epochs, "nothing to compare with, or another worker's counters")
            XCTAssertNil(row.sent)
            XCTAssertNil(row.stopped)
        }
        // Two answers of one moment.
        XCTAssertNil(TopTable.rows(now, now, sortedBy: .name).first?.epochs)
        // The shadow's side: what it committed, and no pause.
        let shadow = try XCTUnwrap(TopTable.rows(snapshot([domain("s", .shadow, epochs: 10)]), snapshot([domain("s", .shadow, epochs: 30)], after: 1), sortedBy: .name).first)
        XCTAssertEqual(shadow.epochs, 20)
        XCTAssertNil(shadow.stopped)
        XCTAssertNil(shadow.dirtied)
    }

    func testSorting() {
        let domains = [domain("a", epochs: 1) { $0.rpoMs = 5; $0.uuid = "1" }, domain("b", .primary, .degraded, epochs: 1) { $0.rpoMs = 900; $0.uuid = "2"; $0.pauseMsMedian = 9 },
                       domain("c", .primary, .inDoubt, epochs: 1) { $0.rpoMs = nil; $0.uuid = "3"; $0.lagBytes = 1 << 40 }]
        func names(_ key: TopTable.SortKey) -> String { TopTable.rows(nil, snapshot(domains), sortedBy: key).map(\.domain.domain).joined() }
        XCTAssertEqual(names(.name), "abc")
        XCTAssertEqual(names(.state), "cba")
        XCTAssertEqual(names(.rpo), "bac")
        XCTAssertEqual(names(.pause), "bac")
        XCTAssertEqual(names(.lag), "cab")
        XCTAssertEqual(names(.sent), "abc")
        XCTAssertEqual(Set(TopTable.SortKey.allCases.map(\.letter)).count, TopTable.SortKey.allCases.count)
    }

    func testTable() {
        let before = snapshot([domain(epochs: 1000), domain("mail", .shadow, epochs: 10) { $0.uuid = "s" }])
        let now = snapshot([domain(epochs: 1050), domain("mail", .shadow, epochs: 60) { $0.uuid = "s" }, Samples.syncing], after: 1)
        XCTAssertEqual(TopTable.summary(now.status), "shadow-virt top  10:00:01 UTC  host a  2 guests here, 1 shadow  1 syncing, 2 protected")
        XCTAssertEqual(TopTable.table(TopTable.rows(before, now, sortedBy: .name), colour: false), """
            DOMAIN  ROLE     PEER    STATE      EPOCH/S  PAUSE    P99  %STOP       LAG   RPO  DIRTY/S  SENT/S  DISK/S
            db      primary  host-c  syncing          -      -      -      -      0/0B     -        -       -       -
            mail    shadow   b       protected     50.0      -      -      -  1/3.2MiB  32ms        -      0B       -
            web1    primary  b       protected     50.0  0.6ms  1.3ms   10.0  1/3.2MiB  32ms       0B      0B       -

            """)
    }

    /// Several shadows: one line each, and the worst of them is what is sorted by.
    func testSeveralShadows() {
        func shadow(_ peer: String, epoch: UInt64, _ more: (inout ShadowStatus) -> Void = { _ in }) -> ShadowStatus {
            var shadow = ShadowStatus(peer: peer, state: .protected, reason: "", since: "2024-05-01T10:00:00.250Z", multiple: 1)
            shadow.committedEpoch = epoch
            more(&shadow)
            return shadow
        }
        let before = snapshot([domain("db", epochs: 1000) { $0.shadows = [shadow("b", epoch: 1000), shadow("c", epoch: 100)] }, domain(epochs: 1000) { $0.uuid = "2" }])
        let now = snapshot([domain("db", epochs: 1050) {
            $0.shadows = [shadow("b", epoch: 1050) { ($0.rpoMs, $0.bytesSent) = (32, 2048) }, shadow("c", epoch: 130) { ($0.rpoMs, $0.lagEpochs, $0.lagBytes, $0.state) = (6500, 278, 14 << 20, .degraded) }]
            $0.peer = "b2"
        }, domain(epochs: 1050) { ($0.uuid, $0.rpoMs) = ("2", 900) }], after: 1)
        XCTAssertEqual(TopTable.table(TopTable.rows(before, now, sortedBy: .rpo), colour: false), """
            DOMAIN  ROLE     PEER  STATE      EPOCH/S  PAUSE    P99  %STOP          LAG    RPO  DIRTY/S  SENT/S  DISK/S
            db      primary  b2    protected     50.0  0.6ms  1.3ms   10.0     1/3.2MiB   32ms       0B      0B       -
                    shadow   b     protected     50.0                              0/0B   32ms           2.0KiB
                    shadow   c     degraded      30.0                       278/14.0MiB   6.5s               0B
            web1    primary  b     protected     50.0  0.6ms  1.3ms   10.0     1/3.2MiB  900ms       0B      0B       -

            """)
    }

    // MARK: The command

    func testOnce() throws {
        let service = try FakeService(ControlResponse(status: Samples.status([Samples.domain()])))
        let outcome = Harness().run("top", "--once", "--delay", "0.1", "--socket", service.path)
        XCTAssertEqual(outcome.code, 0, outcome.err)
        XCTAssertTrue(outcome.out.hasPrefix("shadow-virt top  10:00:01 UTC  host a  1 guest here, 0 shadows  1 protected\nDOMAIN"), outcome.out)
        XCTAssertFalse(outcome.out.contains("\u{1B}"), outcome.out)
        XCTAssertEqual(service.requests.count, 2)
        // Without a terminal it is the same, with a number it prints that many.
        XCTAssertEqual(Harness().run("top", "-d0.1", "--socket", service.path).out.components(separatedBy: "DOMAIN").count - 1, 1)
        XCTAssertEqual(Harness().run("top", "-d0.1", "-n3", "--socket", service.path).out.components(separatedBy: "DOMAIN").count - 1, 3)
        let empty = try FakeService(ControlResponse(status: Samples.status([])))
        XCTAssertEqual(Harness().run("top", "--once", "-d", "0.1s", "--socket", empty.path).out, "shadow-virt top  10:00:01 UTC  host a  0 guests here, 0 shadows\n")
    }

    func testMistakes() {
        for words in [["--delay", "0"], ["--delay", "x"], ["-n", "0"], ["--iterations", "many"], ["--sort", "age"], ["--delay", "nan"]] {
            XCTAssertEqual(Harness().run(["top"] + words).code, 64, "\(words)")
        }
        let outcome = Harness().run("top", "--once", "--socket", "/nonexistent/x.sock")
        XCTAssertEqual(outcome.code, 1)
        XCTAssertTrue(outcome.err.contains("is it running?"), outcome.err)
    }

    // MARK: On a terminal

    private final class Terminal {
        let master: Int32, slave: Int32
        private var read: [UInt8] = []

        init(rows: UInt16, columns: UInt16) throws {
            // What posix_openpt(3), unlockpt(3) and ptsname(3) do, which Glibc's module lacks.
            master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC)
            var unlocked: Int32 = 0, number: Int32 = 0
            guard master >= 0, ioctl(master, 0x4004_5431 /* TIOCSPTLCK */, &unlocked) == 0, ioctl(master, 0x8004_5430 /* TIOCGPTN */, &number) == 0 else {
                throw SystemError("open", "/dev/ptmx")
            }
            slave = open("/dev/pts/\(number)", O_RDWR | O_NOCTTY | O_CLOEXEC)
            guard slave >= 0 else { throw SystemError("open", "the terminal") }
            resize(rows: rows, columns: columns)
        }

        deinit { [master, slave].forEach { close($0) } }

        func resize(rows: UInt16, columns: UInt16) {
            var size = winsize(ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0)
            _ = ioctl(master, UInt(TIOCSWINSZ), &size)
        }

        func type(_ text: String) { _ = Array(text.utf8).withUnsafeBytes { write(master, $0.baseAddress, $0.count) } }

        /// All that was shown so far, once it has `text`.
        func shown(_ text: String, limit: Double = 10_000) throws -> String {
            let deadline = MonotonicTime.now.adding(milliseconds: limit)
            var chunk = [UInt8](repeating: 0, count: 65536)
            while true {
                let all = String(decoding: read, as: UTF8.self)
                if all.contains(text) { return all }
                guard try !Platform.wait(master, for: .readable, until: deadline).isEmpty else { throw ControlFailure("'\(text)' is not shown: \(all.debugDescription)") }
                let n = Glibc.read(master, &chunk, chunk.count)
                guard n > 0 else { throw ControlFailure("The terminal is gone: \(all)") }
                read += chunk[..<n]
            }
        }

        func forget() { read = [] }

        var flags: tcflag_t {
            var settings = termios()
            tcgetattr(slave, &settings)
            return settings.c_lflag
        }
    }

    private func view(_ terminal: Terminal, look: @escaping @Sendable () throws -> TopTable.Snapshot) throws -> TopView {
        try TopView(TerminalScreen(input: terminal.slave, output: terminal.slave), input: terminal.slave, signals: TerminalSignals(), delayMs: 100, sort: .name, colour: false, look: look)
    }

    /// Runs the view on a thread while `body` sits at the terminal; gives what it threw.
    private func run(_ terminal: Terminal, iterations: Int = .max, look: @escaping @Sendable () throws -> TopTable.Snapshot, _ body: () throws -> Void) throws {
        let view = UncheckedBox(try self.view(terminal, look: look))
        let ended = Guarded<Result<Void, any Error>?>(nil)
        startThread("view") {
            let result = Result { try view.value.run(iterations: iterations) }
            ended.change { $0 = result }
        }
        try body()
        let result = ended.wait(until: MonotonicTime.now.adding(milliseconds: 10_000)) { $0 }
        XCTAssertNotNil(result, "it did not end")
        try result?.get()
    }

    private final class UncheckedBox<Value>: @unchecked Sendable {
        let value: Value
        init(_ value: Value) { self.value = value }
    }

    func testKeysSizeAndTheTerminalAfterwards() throws {
        let terminal = try Terminal(rows: 24, columns: 60)
        let before = terminal.flags
        let status = Samples.status((1...3).map { number in
            var domain = Samples.domain("guest\(number)")
            domain.uuid = "\(number)"
            domain.rpoMs = Double(number)
            return domain
        })
        try run(terminal, look: { TopTable.Snapshot(status: status, at: .now) }) {
            let first = try terminal.shown("q quit")
            XCTAssertTrue(first.hasPrefix("\u{1B}[?1049h\u{1B}[?25l"), first.debugDescription)
            XCTAssertEqual(terminal.flags & tcflag_t(ICANON | ECHO), 0)
            let table = try terminal.shown("guest3")
            for line in table.components(separatedBy: "\r\n") where line.contains("primary") {
                XCTAssertLessThanOrEqual(line.replacingOccurrences(of: #"\x{1B}\[[?0-9;]*[A-Za-z]|\r"#, with: "", options: .regularExpression).count, 60, line.debugDescription)
            }
            terminal.forget()
            terminal.type("r")
            let sorted = try terminal.shown("guest1 ")
            let order = ["guest3", "guest2", "guest1"].compactMap { sorted.range(of: $0)?.lowerBound }
            XCTAssertEqual(order.count, 3)
            terminal.forget()
            terminal.resize(rows: 5, columns: 60)
            _ = try terminal.shown("more lines do not fit")
            terminal.type("q")
            _ = try terminal.shown("\u{1B}[?25h\u{1B}[?1049l")
        }
        XCTAssertEqual(terminal.flags, before, "the terminal is as it was")
    }

    func testAServiceThatHangsAndOneThatFails() throws {
        let terminal = try Terminal(rows: 24, columns: 200)
        let release = Guarded(false)
        try run(terminal, look: {
            _ = release.wait(until: MonotonicTime.now.adding(milliseconds: 20_000)) { $0 ? true : nil }
            throw ControlFailure("The service is not there")
        }) {
            _ = try terminal.shown("q quit")
            release.change { $0 = true }
            _ = try terminal.shown("The service is not there")
            terminal.type("q")
            _ = try terminal.shown("\u{1B}[?1049l")
        }
        let hanging = try Terminal(rows: 24, columns: 200)
        let begin = MonotonicTime.now
        let never = Guarded(false)
        try run(hanging, look: {
            _ = never.wait(until: MonotonicTime.now.adding(milliseconds: 20_000)) { $0 ? true : nil }
            throw ControlFailure("too late")
        }) {
            _ = try hanging.shown("q quit")
            hanging.type("q")
        }
        never.change { $0 = true }
        XCTAssertLessThan(MonotonicTime.now.milliseconds(since: begin), 10_000)
    }

    func testIterationsAndSignals() throws {
        let status = Samples.status([Samples.domain()])
        let counted = try Terminal(rows: 24, columns: 80)
        try run(counted, iterations: 2, look: { TopTable.Snapshot(status: status, at: .now) }) { _ = try counted.shown("\u{1B}[?1049l") }
        for number in [SIGINT, SIGTERM, SIGHUP] {
            let terminal = try Terminal(rows: 24, columns: 80)
            let before = terminal.flags
            try run(terminal, look: { TopTable.Snapshot(status: status, at: .now) }) {
                _ = try terminal.shown("web1")
                kill(getpid(), number)
                _ = try terminal.shown("\u{1B}[?1049l")
            }
            XCTAssertEqual(terminal.flags, before)
        }
    }

    func testClip() {
        XCTAssertEqual(TerminalScreen.clip("abcdef", 3), "abc")
        XCTAssertEqual(TerminalScreen.clip("a\u{1B}[1;31mbcd\u{1B}[0m", 2), "a\u{1B}[1;31mb\u{1B}[0m")
        XCTAssertEqual(TerminalScreen.clip("größe", 4), "größ")
    }
}
