import XCTest

/// The guest boots anew under protection, which goes on.
final class RebootTests: HostsTestCase {
    func testReset() throws {
        try rebooted { guest in try hosts.virsh(guest.home, "reset", guest.name) }
    }

    func testRebootFromInside() throws {
        try rebooted { guest in try hosts.virsh(guest.home, "send-key", guest.name, "KEY_R") }
    }

    func testReboot() throws {
        try rebooted { guest in try hosts.virsh(guest.home, "reboot", guest.name) }
    }

    private func rebooted(_ act: (LedgerGuest) throws -> CommandResult) throws {
        let guest = try protectedGuest()
        let boots = guest.serial.boots(guest.home)
        let before = try XCTUnwrap(try hosts.status(guest.home, guest.name))
        let result = try act(guest)
        try require(result.succeeded, result.summary)
        try waitUntil("\(guest.name) has booted anew", limit: 30) { guest.serial.boots(guest.home) == boots + 1 }
        try guest.waitForTicks(100, limit: 10)
        let after = try XCTUnwrap(try hosts.status(guest.home, guest.name))
        XCTAssertEqual(after.state, "protected", after.reason)
        XCTAssertGreaterThan(after.committed, before.committed, "the same protection went on")
        try guest.swap()
        try guest.waitForTicks(250)
        try guest.checkBooks(mayReboot: true)
        try guest.checkNeverTwice()
    }
}
