@testable import Orchestration
import Configuration
import ControlProtocol
import Foundation
import Platform
import XCTest

/// Fewer shadows than a policy asks for: how often that is tried, what is said, and when a shadow counts as lost.
final class ShortageTests: XCTestCase {
    func testPauses() {
        XCTAssertEqual((1...11).map { Backoff.pauseMs(afterFailures: $0, factor: 1) / 1000 }, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300])
        XCTAssertEqual(Backoff.pauseMs(afterFailures: 0, factor: 1), 1000)
        XCTAssertEqual(Backoff.pauseMs(afterFailures: .max, factor: 1), 300_000)
        let many = (1...200).map { _ in Backoff.pauseMs(afterFailures: 3) }
        XCTAssertTrue(many.allSatisfy { (3200...4800).contains($0) }, "\(many)")
        XCTAssertGreaterThan(Set(many).count, 100, "Guests that lost one host do not ask in step")
    }

    func testTheSameReasonWithOtherFigures() {
        XCTAssertEqual(PolicyKeeper.withoutFigures("b has 310 MiB free"), PolicyKeeper.withoutFigures("b has 97 MiB free"))
        XCTAssertNotEqual(PolicyKeeper.withoutFigures("b has 310 MiB free"), PolicyKeeper.withoutFigures("Cannot reach b"))
        let short = Shortage(wanted: 2, present: 1, reason: "b is away")
        XCTAssertTrue(short.isSame(as: Shortage(wanted: 2, present: 1, reason: "c is away")))
        XCTAssertFalse(short.isSame(as: Shortage(wanted: 2, present: 0, reason: "b is away")))
        XCTAssertEqual(short.text, "It has 1 of the 2 shadows that its policy asks for: b is away")
    }

    private func slot(_ entry: ShadowEntry = ShadowEntry(peer: "b", session: UUID(), multiple: 1)) -> ShadowSlot {
        let environment = HostEnvironment(configuration: ServiceConfiguration(environment: [:]), secretBytes: nil) { throw ControlFailure("no libvirt in this test") }
        return ShadowSlot(entry, peer: Peer(name: "b", address: PeerAddress(host: "127.0.0.1", port: 9), libvirtURI: "test:///default"), environment: environment)
    }

    func testWhenAShadowIsLost() {
        let slot = slot()
        XCTAssertFalse(slot.isLost(afterMs: 0), "Its first copy was not even begun")
        slot.enter(0)
        XCTAssertFalse(slot.isLost(afterMs: 0))
        slot.failed("Cannot reach b", isAway: true)
        usleep(2000)
        XCTAssertTrue(slot.isLost(afterMs: 1))
        XCTAssertFalse(slot.isLost(afterMs: 60_000), "It is waited for")
        XCTAssertFalse(slot.isLost(afterMs: nil), "It is waited for as long as it takes")
        slot.enter(0)
        XCTAssertFalse(slot.isLost(afterMs: 1), "A copy is under way")
        slot.noteFollowing()
        XCTAssertFalse(slot.isLost(afterMs: 0))
        slot.noteLinkLost()
        slot.board.set(.degraded, "The connection broke")
        usleep(2000)
        XCTAssertTrue(slot.isLost(afterMs: 1))
        slot.noteFollowing()
        XCTAssertFalse(slot.isLost(afterMs: 0))
    }

    func testOneThatIsReplacedStaysOutOverARestart() throws {
        let slot = slot()
        XCTAssertTrue(slot.isDue)
        slot.setReplaced(true)
        XCTAssertFalse(slot.isDue, "It takes no part in captures")
        let entry = try JSONDecoder().decode(ShadowEntry.self, from: JSONEncoder().encode(slot.entry))
        XCTAssertTrue(self.slot(entry).isReplaced)
        let old = try JSONDecoder().decode(ShadowEntry.self, from: Data(#"{"peer": "b", "session": "8f8a7c1e-0000-4000-8000-000000000001", "multiple": 2}"#.utf8))
        XCTAssertFalse(self.slot(old).isReplaced, "a record of an older release")
    }

    /// Long in back-off; then a host says that it is back.
    func testAHostThatIsBack() {
        let keeper = PolicyKeeper()
        keeper.look("u")
        keeper.look("fresh")
        let later = MonotonicTime.now.adding(milliseconds: 300_000)
        keeper.change("u") { ($0.failures, $0.due) = (9, later) }
        keeper.change("fresh") { $0.due = later }
        keeper.suspect("u", "b", "no room")
        keeper.suspect("u", "b", "no room")
        XCTAssertEqual(keeper.excluded("u").count, 1)
        keeper.hostIsAvailable("b")
        XCTAssertLessThan(keeper.entry("u").due.milliseconds(since: .now), 1600, "It is tried now")
        XCTAssertEqual(keeper.excluded("u"), [:], "What failed there before is forgotten")
        XCTAssertEqual(keeper.entry("u").failures, 1, "and the pauses begin anew")
        XCTAssertEqual(keeper.entry("fresh").due, later, "What is in no back-off keeps its time")
        XCTAssertEqual(keeper.entry("fresh").failures, 0)
        keeper.change("u") { ($0.isBusy, $0.due) = (true, later) }
        keeper.hostIsAvailable("b")
        XCTAssertTrue(keeper.entry("u").wasCalled, "The attempt under way may have asked too early")
    }

    // MARK: KPIs of each shadow

    func testFiguresOfEachOfSeveral() {
        var status = DomainStatus(domain: "web1", uuid: "u", role: .primary, peer: "b", engine: "continuous", state: .protected, reason: "", since: "", configuredIntervalMs: 20)
        var (near, far) = (ShadowStatus(peer: "b", state: .protected, reason: "", since: "", multiple: 1), ShadowStatus(peer: "c", state: .protected, reason: "", since: "", multiple: 1))
        var figures = ReplicationFigures()
        status.shadows = [near]
        XCTAssertEqual(figures.shadowValues(status, at: .now), [:], "the only one's are the domain's")
        (far.lagBytes, far.lagEpochs, far.rpoMs, far.committedEpoch) = (4096, 7, 150, 100)
        status.shadows = [near, far]
        let begin = MonotonicTime.now
        let first = figures.shadowValues(status, at: begin)
        XCTAssertEqual(first["lag_bytes@c"], 4096)
        XCTAssertEqual(first["lag_epochs_count@c"], 7)
        XCTAssertEqual(first["rpo_ms@c"], 150)
        XCTAssertEqual(first["lag_bytes@b"], 0)
        XCTAssertNil(first["rpo_ms@b"], "not known: absent, not 0")
        XCTAssertNil(first["commits_per_second@c"])
        (near.committedEpoch, far.committedEpoch) = (50, 120)
        status.shadows = [near, far]
        let second = figures.shadowValues(status, at: begin.adding(milliseconds: 2000))
        XCTAssertEqual(second["commits_per_second@c"], 10)
        XCTAssertEqual(second["commits_per_second@b"], 25)
    }
}
