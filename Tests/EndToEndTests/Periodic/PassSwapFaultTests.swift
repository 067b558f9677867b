import Foundation
import Glibc
import XCTest

/// The same faults in swaps of the engine `periodic`, whose guest stands still from the end of its last pass.
final class PassSwapFaultTests: SwapFaultTests {
    override var rounds: Int { 2 }

    override func boot(_ guest: LedgerGuest) throws {
        try hosts.provideLedgerDisk()
        guest.hasDisks = true
        guest.hasPasses = true
        try guest.boot(on: .a)
    }

    override func testCableCut() throws { try super.testCableCut() }
    override func testServiceOfThePrimaryKilled() throws { try super.testServiceOfThePrimaryKilled() }
    override func testShadowWorkerKilled() throws { try super.testShadowWorkerKilled() }

    /// A peer that hangs does not keep the guest waiting for long.
    func testShadowWorkerStopped() throws {
        let guest = try protectedGuest()
        let mark = guest.serial.mark
        let workers = try hosts.service(guest.home.other).workers
        for worker in workers { kill(worker, SIGSTOP) }
        let result = try hosts.shadowVirt(guest.home, "swap", guest.name, limit: 60)
        for worker in workers { kill(worker, SIGCONT) }
        XCTAssertEqual(result.status, 1, result.summary)
        try guest.waitForTicks(250, limit: 15)
        report("periodic, swap to a shadow whose worker is stopped: given up, silence \(String(format: "%.1f", guest.serial.largestGap(since: mark))) s")
        XCTAssertLessThan(guest.serial.largestGap(since: mark), 15)
        try guest.waitUntilWholeAgain(limit: 40)
        try guest.swap()
        try guest.lookAtEverything()
        try guest.checkBooks()
        try guest.checkNeverTwice()
    }
}
