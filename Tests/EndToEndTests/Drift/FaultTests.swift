import Foundation
import XCTest

/// Hosts that fail slowly, for real (Tests/Support/faults.sh): the guest on one of them leaves it by itself, because of its drift's score alone.
///
/// One fault a run, unless E2E_FAULTS=all: each takes a minute in which the baseline is learned.
final class FaultTests: DriftTestCase {
    private static let isAll = ProcessInfo.processInfo.environment["E2E_FAULTS"] == "all"
    override class var hostCount: Int { isAll ? 3 : 2 }
    /// With a policy that swaps soon; epochs every 100 ms are far enough from the lower bound for a shorter interval to be seen.
    override class var configuration: [String] { super.configuration + ["on_drift = \"swap\"", "drift_swap_after = 5"] }

    private var hasBegun = false
    private static let script = TwoHosts.tests + "/Support/faults.sh"

    private struct Fault {
        /// As faults.sh has it.
        var name: String
        var amount: String
        /// Of the KPIs that it moves, at least one is to be named.
        var kpis: Set<String>
        /// Seconds within which the alarm is raised.
        var limit: Double
    }

    override func tearDownWithError() throws {
        // Before the hosts go: their control groups are the machine's.
        if hasBegun, let hosts = try? hosts {
            for host in hosts.members { _ = try? runCommand([Self.script, "end", hosts.folder, host.rawValue], limit: 20) }
        }
        try super.tearDownWithError()
    }

    private func skipUnlessAll() throws {
        if !Self.isAll { throw XCTSkip("Faults that take minutes skipped: E2E_FAULTS=all runs them") }
    }

    private func begin(_ host: Host, _ words: String...) throws {
        hasBegun = true
        let result = try runCommand([Self.script, "begin", try hosts.folder, host.rawValue] + words, limit: 20)
        try require(result.succeeded, "faults.sh begin \(words): \(result.summary)")
    }

    private func end(_ host: Host) throws {
        let result = try runCommand([Self.script, "end", try hosts.folder, host.rawValue], limit: 20)
        try require(result.succeeded, "faults.sh end: \(result.summary)")
    }

    private func skipUnlessPossible(_ fault: String) throws {
        let tried = try runCommand([Self.script, "possible", try hosts.folder, fault], limit: 20)
        if !tried.succeeded { throw XCTSkip("The fault \(fault) skipped: \((tried.out + tried.err).trimmed)") }
    }

    /// Before its first guest.
    private var haveOwnDisks: [Host] = []
    /// Their disks, as faults.sh has it.
    private var kindOfDisk = "own-disk"

    override func boot(_ guest: LedgerGuest) throws {
        for host in haveOwnDisks { try begin(host, kindOfDisk) }
        try super.boot(guest)
    }

    /// What `drift` says is learned once a single KPI is; a KPI takes 60 samples in which there was something to measure, and a quick line has those rarely.
    private static let samplesOfAll = 100

    /// A guest on host A, protected to B, of which all is learned that there is to be; where all faults are tried, by every KPI.
    private func learnedGuest(beforeLearning prepare: () throws -> Void = {}) throws -> LedgerGuest {
        leaveDisorder()
        let guest = try runningGuest()
        try guest.protect(interval: "100ms")
        try guest.waitUntilProtected()
        try prepare()
        try waitUntil("what is normal is learned", limit: 180, every: 0.5) {
            guard let drift = try drift(.a, guest), !drift.learning else { return false }
            return !Self.isAll || drift.samples >= Self.samplesOfAll
        }
        return guest
    }

    /// No alarm for so long. In doubt it may be: 60 samples are not much to learn from.
    private func staysCalm(_ guest: LedgerGuest, seconds: Double, _ what: String) throws {
        let end = Clock.seconds + seconds
        var worst = 0.0
        while Clock.seconds < end {
            worst = max(worst, try drift(.a, guest)?.score ?? 0)
            usleep(500_000)
        }
        report(String(format: "%@: worst score %.2f in %.0f s", what, worst, seconds))
        let told = try events(.a).filter { ["drift", "warm_swap_began"].contains($0.kind) }.map(\.message)
        try require(told.isEmpty, "\(what): \(told)")
    }

    /// From the beginning of the fault to the guest's being at home on host B.
    private func leaves(_ guest: LedgerGuest, _ fault: Fault) throws {
        // Noise may have shortened it already, for a minute at least: then nothing is known of this fault's doubt, and an event of before is none of it.
        let wasInDoubt = try figures(guest).interval_ms < 100
        let earlier = try events(.a).filter { $0.kind == "drift" && $0.details?["state"] == "began" }.map(\.message)
        try require(earlier.isEmpty, "An alarm before the fault: \(earlier)")
        let begin = Clock.seconds
        try self.begin(.a, fault.name, fault.amount)
        let shortened = try waitForEvent(.a, "interval", limit: fault.limit) { $0.details?["mode"] == "shortened" }
        let inDoubt = wasInDoubt ? "before it began" : String(format: "%.1f s", Clock.seconds - begin)
        XCTAssertTrue(shortened.message.contains("drift score"), shortened.message)
        let alarm = try waitForEvent(.a, "drift", limit: fault.limit) { $0.details?["state"] == "began" }
        let alarmed = Clock.seconds - begin
        XCTAssertEqual(alarm.details?["side"], "primary", alarm.message)
        XCTAssertTrue(fault.kpis.contains { alarm.message.contains($0) }, alarm.message)
        try guest.followToOther(mayRepeat: 0, limit: 60)
        let left = Clock.seconds - begin
        let swapped = try waitForEvent(.a, "warm_swap", limit: 30)
        report(String(format: "%@ %@: in doubt %@, alarm %.1f s, at the other host %.1f s, outage %@ ms: %@", fault.name, fault.amount, inDoubt, alarmed, left,
                      swapped.details?["outage_ms"] ?? "?", String(alarm.message.prefix(600))))
        XCTAssertTrue(swapped.message.contains("this host drifts"), swapped.message)
        try isolated(guest, because: "this host drifts")
        try guest.waitForTicks(50)
        try guest.checkBooks()
        try guest.checkNeverTwice()
        for words in [["events"], ["drift"]] { print(try hosts.run(.a, [TwoHosts.binary] + words).out) }
    }

    // MARK: The host itself

    func testAThrottledProcessorIsLeft() throws {
        try skipUnlessPossible("cpu")
        let guest = try learnedGuest()
        try leaves(guest, Fault(name: "cpu", amount: "20", kpis: ["host_wakeup_ms", "host_memory_latency_ns", "host_storage_write_ms"], limit: 100))
    }

    func testASlowDiskIsLeft() throws {
        try skipUnlessAll()
        try skipUnlessPossible("disk")
        haveOwnDisks = [.a]
        let guest = try learnedGuest()
        try leaves(guest, Fault(name: "disk", amount: "10", kpis: ["host_storage_write_ms", "host_storage_read_ms"], limit: 100))
    }

    /// The storage itself is slow, rather than what one gets of it: an NBD server takes its time.
    func testADiskBehindASlowServerIsLeft() throws {
        try skipUnlessAll()
        try skipUnlessPossible("nbd")
        (haveOwnDisks, kindOfDisk) = ([.a], "own-nbd")
        let guest = try learnedGuest()
        try leaves(guest, Fault(name: "nbd", amount: "3", kpis: ["host_storage_write_ms", "host_storage_read_ms"], limit: 100))
    }

    /// The disk of the control group, of which others take what they can get.
    func testABusyNeighbourIsLeft() throws {
        try skipUnlessAll()
        try skipUnlessPossible("neighbour")
        haveOwnDisks = [.a]
        let guest = try learnedGuest { try begin(.a, "disk", "100") }
        try staysCalm(guest, seconds: 20, "without a neighbour")
        try leaves(guest, Fault(name: "neighbour", amount: "10", kpis: ["host_storage_write_ms", "host_storage_read_ms"], limit: 100))
    }

    /// The same work more on both sides.
    func testASurgeOnBothSidesIsNoAlarm() throws {
        try skipUnlessAll()
        try skipUnlessPossible("neighbour")
        haveOwnDisks = [.a, .b]
        let guest = try learnedGuest { for host in Host.allCases { try begin(host, "disk", "100") } }
        try staysCalm(guest, seconds: 20, "before the surge")
        for host in Host.allCases { try begin(host, "neighbour", "10") }
        try staysCalm(guest, seconds: 60, "ten busy neighbours on each side")
        XCTAssertEqual(guest.home, .a)
        try guest.checkBooks()
    }

    // MARK: Its line. Between two hosts it is nobody's: a third one tells whose it is

    func testALineThatLosesPacketsIsLeft() throws {
        try skipUnlessAll()
        try skipUnlessPossible("loss")
        try leaves(try learnedGuest(), Fault(name: "loss", amount: "20", kpis: ["others_round_trip_ms", "peer_round_trip_ms"], limit: 100))
    }

    func testALineThatTakesItsTimeIsLeft() throws {
        try skipUnlessAll()
        try skipUnlessPossible("delay")
        try leaves(try learnedGuest(), Fault(name: "delay", amount: "20 10", kpis: ["others_round_trip_ms", "peer_round_trip_ms"], limit: 100))
    }

    /// A line that is merely slow is no drift: small requests get through between epochs. Epochs become rarer, so that the shadow follows, and nothing moves.
    func testASlowLineMakesEpochsRarer() throws {
        try skipUnlessAll()
        try skipUnlessPossible("rate")
        let guest = try learnedGuest()
        try begin(.a, "rate", "16mbit")
        let lengthened = try waitForEvent(.a, "interval", limit: 100) { $0.details?["mode"] == "lengthened" }
        XCTAssertTrue(lengthened.message.contains("the shadow lags behind"), lengthened.message)
        XCTAssertGreaterThan(try figures(guest).interval_ms, 100)
        XCTAssertEqual(guest.home, .a)
        XCTAssertEqual(try events(.a).filter { $0.kind == "warm_swap_began" }.count, 0)
        try end(.a)
        try guest.waitUntilProtected(limit: 30)
        try guest.waitForTicks(50)
        try guest.checkBooks()
    }
}
