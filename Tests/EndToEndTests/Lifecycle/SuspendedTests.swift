import Glibc
import XCTest

/// Things happen while the guest is suspended by its user: it stays so until its user resumes it.
final class SuspendedTests: HostsTestCase {
    func testSwapAndUnprotectAreRefused() throws {
        try whileSuspended { guest in
            let swap = try hosts.shadowVirt(guest.home, "swap", guest.name)
            XCTAssertEqual(swap.status, 1, swap.summary)
            XCTAssertTrue(swap.err.contains("Resume it first"), swap.summary)
            let unprotect = try hosts.shadowVirt(guest.home, "unprotect", guest.name)
            XCTAssertEqual(unprotect.status, 1, unprotect.summary)
            XCTAssertTrue(unprotect.err.contains("virsh resume \(guest.name)"), unprotect.summary)
        }
    }

    func testSourceWorkerKilled() throws {
        try whileSuspended { guest in try hosts.service(guest.home).workers.forEach { kill($0, SIGKILL) } }
    }

    func testServiceOfThePrimaryKilled() throws {
        try whileSuspended { guest in
            try hosts.service(guest.home).kill()
            usleep(500_000)
            try hosts.waitForService(guest.home)
        }
    }

    func testServiceOfTheShadowKilled() throws {
        try whileSuspended { guest in
            try hosts.service(guest.home.other).kill()
            usleep(500_000)
            try hosts.waitForService(guest.home.other)
        }
    }

    func testLibvirtdRestarted() throws {
        try whileSuspended { guest in
            try hosts.hosts("libvirtd-stop", guest.home.rawValue)
            try hosts.hosts("libvirtd-start", guest.home.rawValue)
        }
    }

    func testCableCut() throws {
        try whileSuspended { guest in
            try hosts.hosts("cut")
            usleep(7_000_000)
            try hosts.hosts("join")
        }
    }

    func testDestroyed() throws {
        let guest = try suspendedGuest()
        try hosts.virsh(guest.home, "destroy", guest.name)
        try waitUntil("The shadow is gone", limit: 15) { try hosts.domainState(guest.home.other, guest.name) == nil }
        try hosts.assertNoTraces(of: guest.name)
        try guest.start(on: guest.home)
        try guest.protect()
    }

    private func suspendedGuest() throws -> LedgerGuest {
        let guest = try protectedGuest()
        try guest.waitUntilWholeAgain()
        for _ in 1...5 {
            let result = try hosts.virsh(guest.home, "suspend", guest.name)
            try require(result.succeeded, result.summary)
            // One in an epoch may not hold; SuspendTests counts those.
            if (try? hosts.waitForState(guest.home, guest.name, ["suspended"], limit: 2)) != nil { return guest }
            try hosts.virsh(guest.home, "resume", guest.name)
            try guest.waitUntilProtected()
        }
        throw TestFailure("The guest could not be suspended")
    }

    private func whileSuspended(_ act: (LedgerGuest) throws -> Void) throws {
        let guest = try suspendedGuest()
        let stood = guest.serial.last!.tick
        try act(guest)
        usleep(1_500_000)
        try require(guest.serial.last!.tick == stood, "it ran on while it was suspended: from tick \(stood) to \(guest.serial.last!.tick)")
        XCTAssertEqual(try hosts.domainState(guest.home, guest.name), "paused")
        let resumed = try hosts.virsh(guest.home, "resume", guest.name)
        try require(resumed.succeeded, resumed.summary)
        try guest.waitForTicks(25)
        try guest.waitUntilWholeAgain(limit: 20)
        try guest.swap()
        try guest.waitForTicks(100)
        try guest.checkBooks()
        try guest.checkNeverTwice()
    }
}
