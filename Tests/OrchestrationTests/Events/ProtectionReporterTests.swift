import Configuration
import ControlProtocol
import Foundation
import Platform
import XCTest
@testable import Orchestration

/// The states that a protection goes through, and what the journal and the counters make of them.
final class ProtectionReporterTests: XCTestCase {
    private let environment = HostEnvironment(configuration: ServiceConfiguration(environment: [:]), secretBytes: nil) { throw ControlFailure("no libvirt in this test") }

    private func board(_ state: ProtectionState = .syncing, role: Role = .primary) -> StatusBoard {
        StatusBoard(state, label: "web1", reporter: ProtectionReporter(domain: "web1", uuid: "u", role: role, peer: "b", environment: environment))
    }

    private var kinds: [String] { environment.events.next(after: 0, limit: 1000, until: .now).events.map(\.kind.rawValue) }

    private func counters(_ role: Role = .primary) -> ProtectionCounters {
        let status = DomainStatus(domain: "web1", uuid: "u", role: role, peer: "b", engine: "continuous", state: .protected, reason: "", since: "", configuredIntervalMs: 20)
        return environment.tallies.adding(status).counters ?? ProtectionCounters()
    }

    func testFromTheBeginningToASwap() throws {
        let board = board()
        board.set(.syncing, "preparing the shadow on b")
        board.set(.syncing, "copying the guest's memory")
        board.set(.protected)
        board.set(.protected)
        board.set(.suspended, "The guest is suspended")
        board.set(.protected)
        board.set(.swapping)
        board.reporter?.noteHandover(["outage_ms": "21"])
        board.set(.failedOver, "The guest runs on b")
        XCTAssertEqual(kinds, ["began", "first_copy", "protected", "suspended", "resumed", "swap_began", "swap"])
        let last = try XCTUnwrap(environment.events.next(after: 0, limit: 1000, until: .now).events.last)
        XCTAssertEqual(last.details, ["outage_ms": "21", "role": "primary", "peer": "b"])
        XCTAssertEqual([counters().swaps, counters().failovers, counters().failures, counters().resyncs], [1, 0, 0, 0])
        XCTAssertEqual(counters().degradedSeconds, 0)
    }

    func testOneTroubleIsOneStory() {
        let board = board()
        board.set(.syncing, "preparing")
        board.set(.protected)
        for _ in 1...50 {
            board.set(.degraded, "b does not answer")
            board.set(.syncing, "preparing")
        }
        board.set(.degraded, "No space left on b")
        usleep(60_000)
        board.set(.syncing, "preparing")
        board.set(.protected)
        XCTAssertEqual(kinds, ["began", "protected", "degraded", "degraded", "protected"])
        XCTAssertEqual([counters().failures, counters().resyncs], [1, 1])
        XCTAssertGreaterThanOrEqual(counters().degradedSeconds, 0.05)
        let then = counters().degradedSeconds
        usleep(20_000)
        XCTAssertEqual(counters().degradedSeconds, then, "it does not grow while the shadow follows")
    }

    func testPeerLostAndBack() {
        let board = board()
        board.set(.syncing, "preparing")
        board.set(.protected)
        board.set(.degraded, "The connection to b broke", cause: .peerLost)
        board.set(.degraded, "No connection to b: No route to host", cause: .peerLost)
        board.set(.protected)
        XCTAssertEqual(kinds, ["began", "protected", "peer_lost", "peer_back", "protected"])
        XCTAssertEqual([counters().failures, counters().resyncs], [1, 0], "the same shadow went on")
    }

    func testFailoverThatHasToWait() {
        let board = board()
        board.set(.syncing, "preparing")
        board.set(.protected)
        board.set(.swapping, "QEMU died; loading the shadow on b", cause: .failover)
        board.set(.degraded, "QEMU died, and the shadow cannot take over: no route")
        board.set(.failedOver, "The guest runs on b")
        XCTAssertEqual(kinds, ["began", "protected", "failover_began", "degraded", "failover"])
        XCTAssertEqual([counters().swaps, counters().failovers], [0, 1])
    }

    func testASwapThatFailsIsNoFailoverLater() {
        let board = board()
        board.set(.syncing, "preparing")
        board.set(.protected)
        board.set(.swapping)
        board.set(.degraded, "A swap failed: b refused")
        board.set(.syncing, "preparing")
        board.set(.protected)
        board.set(.swapping)
        board.set(.inDoubt, "cut off")
        board.set(.failedOver, "The guest runs on b")
        XCTAssertEqual(kinds, ["began", "protected", "swap_began", "degraded", "protected", "swap_began", "in_doubt", "swap"])
        XCTAssertEqual([counters().swaps, counters().failovers, counters().failures], [1, 0, 1])
    }

    /// By an administrator on the other host, without a word to this one before.
    func testTakenOverByForce() {
        let board = board()
        board.set(.syncing, "preparing")
        board.set(.protected)
        board.set(.failedOver, "The guest runs on b")
        XCTAssertEqual(kinds.last, "failover")
    }

    func testTheShadowsSide() {
        let board = board(role: .shadow)
        board.reporter?.linked()
        board.set(.degraded, "The connection to b broke", cause: .peerLost)
        board.reporter?.linked()
        board.set(.swapping, "loaded")
        board.set(.failedOver, "Runs here")
        XCTAssertEqual(kinds, ["began", "peer_lost", "peer_back", "activated"])
        let forced = self.board(role: .shadow)
        forced.reporter?.linked()
        forced.set(.failedOver, "Runs here", cause: .failover)
        XCTAssertEqual(kinds.suffix(2), ["began", "failover"])
        XCTAssertEqual(counters(.shadow).failovers, 1)
    }

    /// A service that begins anew finds a guest that went over long ago.
    func testNothingNewIsNoEvent() {
        let board = board(.failedOver)
        board.set(.failedOver, "The guest runs on b")
        XCTAssertEqual(kinds, [])
        XCTAssertEqual(counters().failovers, 0)
    }

    func testEnded() {
        let board = board()
        board.set(.syncing, "preparing")
        board.set(.protected)
        board.set(.degraded, "trouble")
        board.reporter?.ended("by request")
        let then = counters().degradedSeconds
        usleep(20_000)
        XCTAssertEqual(counters().degradedSeconds, then)
        XCTAssertEqual(kinds.last, "unprotected")
    }
}
