import Foundation
import XCTest
@testable import Orchestration

/// Which of two shadows is the fresher one.
final class SiblingTests: XCTestCase {
    private let capture = UUID()

    private func state(_ epoch: UInt64, _ generation: UUID?, ageMs: Double? = nil) -> SiblingState {
        SiblingState(phase: .receiving, epoch: epoch, generation: generation, commitAgeMs: ageMs, isTakingOver: false, runs: false)
    }

    func testOfOneCaptureTheLaterEpoch() {
        XCTAssertTrue(state(12, capture, ageMs: 9000).isFresher(than: state(11, capture, ageMs: 1)))
        XCTAssertFalse(state(11, capture).isFresher(than: state(11, capture)))
        XCTAssertFalse(state(10, capture, ageMs: 1).isFresher(than: state(11, capture, ageMs: 9000)))
    }

    /// After a new first copy epochs are counted from 1 again.
    func testOfTwoCapturesTheLaterCommit() {
        XCTAssertTrue(state(3, UUID(), ageMs: 100).isFresher(than: state(900, capture, ageMs: 5000)))
        XCTAssertFalse(state(900, UUID(), ageMs: 5000).isFresher(than: state(3, capture, ageMs: 100)))
        XCTAssertFalse(state(3, nil, ageMs: 100).isFresher(than: state(3, nil, ageMs: 300)), "two hosts asked one after the other: no difference")
    }

    func testWithoutAnEpochThereIsNothingToStartFrom() {
        XCTAssertFalse(state(0, capture).isFresher(than: state(0, capture)))
        XCTAssertFalse(state(0, UUID(), ageMs: 1).isFresher(than: state(5, capture, ageMs: 9000)))
        XCTAssertTrue(state(1, UUID(), ageMs: 9000).isFresher(than: state(0, capture)))
    }
}
