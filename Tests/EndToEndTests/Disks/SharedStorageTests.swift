import Foundation
import XCTest

/// A disk that both hosts have under one path: memory must not be set back against it, because it goes on after the last epoch.
final class SharedStorageTests: DisksTestCase {
    /// One file under one path on both hosts, and a disk that says so.
    private func sharedDiskGuest() throws -> LedgerGuest {
        try freshDiskGuest(edit: { $0.replacingOccurrences(of: "<target dev='vda'", with: "<shareable/><target dev='vda'") }) {
            try FileManager.default.linkItem(atPath: image(.a), toPath: image(.b))
        }
    }

    func testSwapMovesItWithoutLoss() throws {
        let guest = try sharedDiskGuest()
        let result = try guest.tryToProtect()
        XCTAssertTrue(result.succeeded, result.summary)
        XCTAssertTrue((result.out + result.err).contains("is on shared storage"), "protect says so: \(result.summary)")
        try guest.swap()
        try assertInOrder(guest, ticks: 500)
    }

    func testAFailureResumesNothing() throws {
        let guest = try sharedDiskGuest()
        try guest.protect()
        let other = guest.home.other
        let mark = guest.serial.mark
        let command = try hosts.shadowVirt(other, "failover", guest.name, "--force")
        XCTAssertEqual(command.status, 1, command.summary)
        XCTAssertTrue(command.err.contains("its memory must not be set back"), command.summary)
        try guest.killQEMU()
        try waitUntil("The shadow is gone", limit: 20) { try hosts.status(other, guest.name) == nil }
        XCTAssertFalse(guest.serial.ticks(since: mark).contains { $0.host == other }, "It ran there")
        XCTAssertTrue(try hosts.service(guest.home).logText.contains("on shared storage"))
        // The way out that the message names.
        try guest.start(on: guest.home)
        try assertInOrder(guest)
    }

    func testAFailureBootsItColdWhenThatWasAskedFor() throws {
        let guest = try sharedDiskGuest()
        try guest.protect(interval: "20ms", "--on-failure", "restart")
        let boots = guest.serial.boots(guest.home.other)
        try guest.killQEMU()
        try waitUntil("\(guest.name) boots on \(guest.home.other.name)", limit: 40) {
            guest.serial.boots(guest.home.other) > boots
        }
        XCTAssertTrue(try hosts.virsh(guest.home.other, "dominfo", guest.name).out.contains("Persistent:     yes"))
        leaveDisorder()
    }
}
