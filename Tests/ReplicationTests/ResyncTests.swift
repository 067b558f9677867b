import Foundation
import MigrationStream
import Platform
import XCTest
@testable import Replication

/// A session that begins over memory that an earlier one filled: what the shadow holds already does not go over again.
final class ResyncTests: XCTestCase {
    /// Of the guest's 776 pages.
    private static let changed = 40

    /// A first session, its end, and what the guest does meanwhile.
    private func firstSession(_ seed: UInt64) throws -> (shadow: ShadowHost, memory: [[UInt8]]) {
        let rig = try Rig(seed: seed)
        try rig.epochs(20, pages: 30)
        try rig.assertInStep()
        rig.end()
        for page in 0..<Self.changed { rig.qemu.scribble(page % 8 == 0 ? 1 : 0, page % 8 == 0 ? page / 8 : page * 17 % QEMUStandIn.ramPages) }
        return (rig.shadow, rig.qemu.memory)
    }

    private func secondSession(_ seed: UInt64, _ shadow: ShadowHost, _ memory: [[UInt8]], machine: String = "pc-q35-99") throws -> (rig: Rig, bytes: Int) {
        let rig = try Rig(seed: seed + 1000, firstCopy: false, shadow: shadow, memory: memory)
        try rig.qemu.firstCopy(machine: machine)
        try rig.epochs(1, pages: 0)
        try rig.assertInStep()
        return (rig, rig.proxy.forwarded.read { $0.reduce(0, +) })
    }

    func testOnlyWhatDiffersGoesOver() throws {
        let (shadow, memory) = try firstSession(60)
        try shadow.beginSession()
        XCTAssertEqual(shadow.parent?.event(.ready)?.epoch, 0, "What an earlier session committed is no epoch of this one")
        let (rig, bytes) = try secondSession(60, shadow, memory)
        XCTAssertLessThan(bytes, (Self.changed + 8) * 4200, "of \(QEMUStandIn.ramPages * 4096)")
        XCTAssertGreaterThan(rig.parent.event(.memoryKnown)?.bytes ?? 0, 2 << 20)
        for _ in 0..<10 { try rig.epochs(3, pages: 50) }
        try rig.assertInStep()
        XCTAssertEqual(rig.parent.count(.sessionLost) + rig.parent.count(.failed), 0, rig.lastWords)
    }

    /// Somebody wrote into what the shadow kept: hashes are of what lies there, not of what was sent once.
    func testKeptMemoryThatWasDamagedIsSentAgain() throws {
        let (shadow, memory) = try firstSession(61)
        try shadow.beginSession()
        let view = try MappedMemory.shared(shadow.ram, length: QEMUStandIn.ramBytes, what: "a test")
        for page in stride(from: 1, to: QEMUStandIn.ramPages, by: 50) { memset(view.base + page * 4096 + 100, 0x3c, 1) }
        // Pages that are zero in the guest.
        for page in stride(from: 0, to: QEMUStandIn.ramPages, by: 99) { memset(view.base + page * 4096, 0x3c, 4096) }
        let (rig, _) = try secondSession(61, shadow, memory)
        try rig.epochs(5)
        try rig.assertInStep()
        withExtendedLifetime(view) {}
    }

    /// The service of the shadow ended, and with it all files but QEMU's memory.
    func testFilesAreLost() throws {
        let (shadow, memory) = try firstSession(62)
        let header = try shadow.memory().header
        XCTAssertNotNil(header)
        try shadow.beginSession(losesFiles: true, header: header)
        let (rig, bytes) = try secondSession(62, shadow, memory)
        XCTAssertLessThan(bytes, (Self.changed + 2 * QEMUStandIn.videoPages) * 4200)
        try rig.epochs(5)
        try rig.assertInStep()
    }

    /// Nobody knows what the memory was filled for: it is of no use.
    func testNothingIsKnownOfTheMemory() throws {
        let (shadow, memory) = try firstSession(63)
        try shadow.beginSession(losesFiles: true)
        let (rig, bytes) = try secondSession(63, shadow, memory)
        XCTAssertGreaterThan(bytes, QEMUStandIn.ramBytes / 3)
        XCTAssertEqual(rig.parent.event(.memoryKnown)?.bytes, 0)
        try rig.epochs(5)
        try rig.assertInStep()
    }

    /// The guest was started anew as another machine: what was there is cleared on both sides.
    func testAnotherMachine() throws {
        let (shadow, memory) = try firstSession(64)
        try shadow.beginSession()
        let (rig, bytes) = try secondSession(64, shadow, memory, machine: "pc-i440fx-99")
        XCTAssertGreaterThan(bytes, QEMUStandIn.ramBytes / 3)
        try rig.epochs(5)
        try rig.assertInStep()
        // And again, with that one.
        rig.end()
        try shadow.beginSession()
        let (third, few) = try secondSession(164, shadow, rig.qemu.memory, machine: "pc-i440fx-99")
        XCTAssertLessThan(few, 40 * 4200)
        try third.assertInStep()
    }

    /// The connection breaks while hashes, or the first pages, are under way: begun anew, from what lies there then.
    func testBreaksWhileItBegins() throws {
        var random = SeededGenerator(seed: 65)
        var (shadow, memory) = try firstSession(65)
        for round in 0..<8 {
            try shadow.beginSession()
            let rig = try Rig(seed: 3000 + UInt64(round), firstCopy: false, shadow: shadow, memory: memory)
            rig.proxy.faults.change { $0.cutAfter = Int(random.next() % 120_000) }
            // QEMU's stream ends when the session cannot go on; both outcomes are fine.
            let copied = (try? rig.qemu.firstCopy()) != nil && (try? rig.epochs(1, pages: 0)) != nil
            if copied, rig.parent.event(.sessionLost, ms: 300) == nil { try rig.assertInStep("round \(round)") }
            rig.parent.send(.stop)
            rig.qemu.hangUp()
            _ = rig.run.result()
            for page in 0..<10 { rig.qemu.scribble(0, (page * 31 + round * 7) % QEMUStandIn.ramPages) }
            memory = rig.qemu.memory
        }
        try shadow.beginSession()
        let (rig, bytes) = try secondSession(65, shadow, memory)
        XCTAssertLessThan(bytes, QEMUStandIn.ramBytes / 2)
        try rig.epochs(5)
        try rig.assertInStep()
        shadow = rig.shadow
    }

    func testWorkerDiesInTheNewSession() throws {
        let (shadow, memory) = try firstSession(66)
        try shadow.beginSession()
        let (rig, _) = try secondSession(66, shadow, memory)
        try rig.epochs(5)
        try rig.assertInStep()
        shadow.stopWorker()
        try shadow.startWorker()
        XCTAssertEqual(shadow.parent?.event(.ready)?.epoch, 6, "A successor of the same session goes on")
        try rig.epochs(5)
        try rig.assertInStep()
    }
}
