import XCTest

/// Guests with several vCPUs, whose states must belong to one instant.
final class VirtualCPUTests: HostsTestCase {
    func testOne() throws { try swapAndFailover(1) }
    func testTwo() throws { try swapAndFailover(2) }
    func testFour() throws { try swapAndFailover(4) }

    private func swapAndFailover(_ vcpus: Int) throws {
        let guest = try freshGuest(vcpus: vcpus)
        try guest.protect()
        pauseAtRandom(0.5...2)
        try guest.swap()
        try guest.waitForTicks(250)
        try guest.checkBooks()
        try guest.protect()
        pauseAtRandom(0.5...2)
        try guest.killQEMU()
        try guest.followToOther()
        try guest.lookAtEverything()
        let check = try guest.checkBooks()
        XCTAssertEqual(check.vcpus, vcpus)
        try guest.checkNeverTwice()
        report("\(vcpus) vCPUs: swap and failover outage \(guest.outages.map { Int($0 * 1000) }) ms, ticks repeated \(check.handOvers.map(\.repeatedTicks))")
    }
}
