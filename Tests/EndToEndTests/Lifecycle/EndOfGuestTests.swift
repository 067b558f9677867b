import XCTest

/// The guest is ended on purpose: no failover, and no protection left.
final class EndOfGuestTests: HostsTestCase {
    func testDestroy() throws {
        try ended { guest in
            let result = try hosts.virsh(guest.home, "destroy", guest.name)
            try require(result.succeeded, "virsh destroy: \(result.summary)")
        }
    }

    func testShutdownFromInside() throws {
        try ended { guest in
            // QEMU drops keys while the guest stands still for an epoch.
            try waitUntil("a key arrives", limit: 20, every: 1) {
                _ = try hosts.virsh(guest.home, "send-key", guest.name, "KEY_Q")
                usleep(500_000)
                return try hosts.domainState(guest.home, guest.name) == "shut off"
            }
        }
    }

    func testPowerButton() throws {
        try ended { guest in
            // Libvirt refuses while the guest stands still for an epoch.
            try waitUntil("virsh shutdown", limit: 10) { try hosts.virsh(guest.home, "shutdown", guest.name).succeeded }
        }
    }

    private func ended(_ end: (LedgerGuest) throws -> Void) throws {
        let guest = try protectedGuest()
        let home = guest.home
        try end(guest)
        try waitUntil("\(guest.name) is shut off on \(home.name)", limit: 20) { try hosts.domainState(home, guest.name) == "shut off" }
        try waitUntil("The shadow on \(home.other.name) is gone", limit: 10) { try hosts.domainState(home.other, guest.name) == nil }
        try waitUntil("The protection is gone on both sides", limit: 10) {
            try Host.allCases.allSatisfy { try hosts.status($0, guest.name) == nil }
        }
        try guest.checkNeverTwice()
        XCTAssertNil(guest.serial.changes(since: guest.serial.mark).first)
        try hosts.assertNoTraces(of: guest.name)
        // And it starts again as ever.
        try guest.start(on: home)
        try guest.protect()
    }
}
