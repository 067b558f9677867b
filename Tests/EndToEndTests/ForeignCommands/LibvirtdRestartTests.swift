import XCTest

/// libvirtd goes away and comes back under protection.
final class LibvirtdRestartTests: HostsTestCase {
    func testStoppedOnThePrimarysHost() throws { try restarted("libvirtd-stop", atHome: true) }
    func testKilledOnThePrimarysHost() throws { try restarted("libvirtd-kill", atHome: true) }
    func testStoppedOnTheShadowsHost() throws { try restarted("libvirtd-stop", atHome: false) }
    func testKilledOnTheShadowsHost() throws { try restarted("libvirtd-kill", atHome: false) }

    private func restarted(_ command: String, atHome: Bool) throws {
        let guest = try protectedGuest()
        let hosts = try hosts
        let host = atHome ? guest.home : guest.home.other
        let mark = guest.serial.mark
        let before = try XCTUnwrap(try hosts.status(guest.home, guest.name))
        try hosts.hosts(command, host.rawValue)
        try guest.waitForEpochs(50)
        try hosts.hosts("libvirtd-start", host.rawValue)
        try guest.waitForEpochs(50)
        let after = try XCTUnwrap(try hosts.status(guest.home, guest.name))
        XCTAssertEqual(after.state, "protected", after.reason)
        XCTAssertGreaterThan(after.committed, before.committed, "the same protection went on")
        XCTAssertLessThan(guest.serial.largestGap(since: mark), 1)
        // The service has its connection again: both kinds of hand-over work.
        usleep(1_000_000)
        try guest.swap()
        try guest.waitForTicks(100)
        try guest.checkBooks()
        try guest.protect()
        try guest.waitUntilWholeAgain()
        try guest.killQEMU()
        try guest.followToOther()
        try guest.waitForTicks(100)
        try guest.checkBooks()
        try guest.checkNeverTwice()
        leaveDisorder()
    }

    /// QEMU dies while libvirtd is away: its verdict is waited for, then the guest goes on.
    func testQEMUDiesWhileLibvirtdIsAway() throws {
        let guest = try protectedGuest()
        let hosts = try hosts
        let home = guest.home
        try hosts.hosts("libvirtd-kill", home.rawValue)
        usleep(300_000)
        try guest.killQEMU()
        usleep(2_000_000)
        try hosts.hosts("libvirtd-start", home.rawValue)
        try guest.followToOther(limit: 30)
        try guest.waitForTicks(100)
        try guest.checkBooks()
        try guest.checkNeverTwice()
    }
}
