import Foundation
import Glibc
import XCTest

/// What happens to a guest with disks while it is protected: nobody makes it stand still, and no epoch lacks a write.
final class DiskProtectionTests: DisksTestCase {
    // MARK: Other people's commands

    /// Protection comes back by itself; but for QEMU's own defect, which is told with the way out, and leaves the guest alone.
    func testMirrorEndedBySomebody() throws {
        var recoveries: [Double] = []
        var filters = 0
        for _ in 1...3 {
            let guest = try protectedGuest()
            try guest.waitUntilWholeAgain()
            pauseAtRandom(0.05...0.3)
            let mark = guest.serial.mark
            let begin = Clock.seconds
            try endMirror(guest)
            usleep(100_000)
            do {
                try guest.waitUntilWholeAgain(limit: 30)
                recoveries.append(Clock.seconds - begin)
            } catch {
                let log = try hosts.service(guest.home).logText
                guard log.contains("QEMU has left the filter"), log.contains("virsh migrate --live") else { throw error }
                filters += 1
                try guest.unprotect()
                leaveDisorder()
            }
            XCTAssertLessThan(guest.serial.largestGap(since: mark), 1.5, "the guest stood still")
            try guest.checkBooks()
        }
        report("mirror ended by somebody: protected again after \(recoveries.inMilliseconds); QEMU left its filter \(filters) times")
        let guest = try protectedGuest()
        try failOver(guest)
        try assertInOrder(guest, ticks: 3000)
    }

    /// Never torn: the guest goes on from an epoch of before, or from the next session's. While that is made a failure loses the guest,
    /// which is what `syncing` means, and is said.
    func testMirrorEndedAndQEMUKilled() throws {
        var lost = 0
        for round in 1...3 {
            let guest = try protectedGuest()
            try guest.waitUntilWholeAgain()
            pauseAtRandom(0.05...0.3)
            let log = try hosts.service(guest.home)
            let mark = log.logMark
            try endMirror(guest)
            if round > 1 { pauseAtRandom(0...0.3) }
            try guest.killQEMU()
            do { try guest.followToOther(mayRepeat: 250, limit: 20) } catch {
                let text = log.logText(since: mark)
                try require(text.contains("there is no shadow to take over"), "Round \(round): \(error)")
                try require(text.contains("syncing: "), "Round \(round): lost without a resync: \(text)")
                lost += 1
                leaveDisorder()
                continue
            }
            try assertInOrder(guest)
        }
        report("mirror ended, then QEMU killed: \(lost) of 5 fell into the resync")
    }

    private func endMirror(_ guest: LedgerGuest) throws {
        let ended = try hosts.virsh(guest.home, "blockjob", guest.name, "vda", "--abort", "--async")
        try require(ended.succeeded, ended.summary)
    }

    /// Libvirt refuses it while the mirror runs; between two protections the replica follows.
    func testSizeChange() throws {
        let guest = try freshDiskGuest()
        try guest.protect()
        let hosts = try hosts
        let resized = try hosts.virsh(.a, "blockresize", guest.name, "vda", "8M")
        if resized.succeeded {
            try waitUntil("the size change is noticed", limit: 10) { hosts.service(.a).logText.contains("changed its size") }
        } else {
            XCTAssertTrue(resized.err.contains("block"), resized.summary)
            try guest.waitForEpochs(5)
            try guest.unprotect()
            let again = try hosts.virsh(.a, "blockresize", guest.name, "vda", "8M")
            try require(again.succeeded, again.summary)
            try guest.protect()
        }
        try guest.waitUntilWholeAgain(limit: 30)
        let size = try FileManager.default.attributesOfItem(atPath: image(.b))[.size] as? Int
        XCTAssertEqual(size, 8 << 20)
        try failOver(guest)
        try assertInOrder(guest)
        // And back, onto the disk that is as large by now.
        try guest.protect()
        try guest.waitUntilWholeAgain()
        try failOver(guest)
        try assertInOrder(guest)
    }

    // MARK: Failures on the primary's side

    func testSourceWorkerKilled() throws {
        try struck("source worker killed", largestGap: 1.5) { guest in
            try hosts.service(guest.home).workers.forEach { kill($0, SIGKILL) }
        }
    }

    func testSourceWorkerStopped() throws {
        try struck("source worker stopped", rounds: 2, largestGap: 12) { guest in
            try hosts.service(guest.home).workers.forEach { kill($0, SIGSTOP) }
        }
    }

    func testServiceOfThePrimaryKilled() throws {
        try struck("service of the primary killed", largestGap: 1.5) { guest in
            let service = try hosts.service(guest.home)
            guard let pid = service.pid else { throw TestFailure("No service on \(guest.home.name)") }
            service.kill()
            try waitUntil("a new service", limit: 10, every: 0.01) { service.pid.map { $0 != pid } ?? false }
        }
    }

    func testServiceOfThePrimaryRestarted() throws {
        let guest = try protectedGuest()
        let hosts = try hosts
        for _ in 1...3 {
            let mark = guest.serial.mark
            let home = guest.home
            try hosts.service(home).stop()
            XCTAssertFalse(try hosts.virsh(home, "dumpxml", guest.name).out.contains("<mirror"), "no job stays behind")
            try hosts.service(home).start()
            try hosts.waitForService(home)
            try guest.waitUntilWholeAgain(limit: 20)
            XCTAssertLessThan(guest.serial.largestGap(since: mark), 1.5, "the guest stood still")
            try failOver(guest)
            try guest.waitForTicks(25)
            try guest.protect()
        }
        try assertInOrder(guest)
    }

    func testNetworkCut() throws {
        let guest = try protectedGuest()
        let hosts = try hosts
        let mark = guest.serial.mark
        for seconds in [0.3, 2, 8] {
            try hosts.hosts("cut")
            usleep(UInt32(seconds * 1e6))
            try hosts.hosts("join")
            try guest.waitUntilWholeAgain(limit: 30)
        }
        XCTAssertLessThan(guest.serial.largestGap(since: mark), 2, "the guest stood still")
        try failOver(guest)
        try assertInOrder(guest, ticks: 3000)
    }

    private func struck(_ what: String, rounds: Int = 4, largestGap limit: Double, _ strike: (LedgerGuest) throws -> Void) throws {
        let guest = try protectedGuest()
        var gaps: [Double] = [], recoveries: [Double] = []
        for round in 1...rounds {
            try guest.waitUntilWholeAgain(limit: 30)
            pauseAtRandom(0.02...0.4)
            let mark = guest.serial.mark
            let begin = Clock.seconds
            try strike(guest)
            // A state of before the strike must not count.
            usleep(100_000)
            do { try waitUntil("it is noticed, and over", limit: 40) {
                try guest.waitUntilWholeAgain(limit: 40)
                return guest.serial.silence(guest.home) < 0.5
            } } catch {
                throw TestFailure("Round \(round): \(error); the guest \(guest.isTicking ? "runs" : "STANDS STILL"), \(try hosts.service(guest.home).logText.suffix(1500))")
            }
            recoveries.append(Clock.seconds - begin)
            gaps.append(guest.serial.largestGap(since: mark))
            if round % 2 == 0 {
                do { try failOver(guest) } catch { throw TestFailure("Failover after round \(round): \(error)") }
                try guest.waitForTicks(50)
                try guest.checkBooks()
                try guest.protect()
            }
        }
        report("\(what), with a disk: the guest's largest silence \(gaps.inMilliseconds); protected again after \(recoveries.inMilliseconds)")
        XCTAssertLessThan(gaps.max() ?? 0, limit, "the guest stood still")
        try assertInOrder(guest, ticks: 3000)
    }

    // MARK: Ending

    func testUnprotectKeepsTheReplica() throws {
        let guest = try freshDiskGuest()
        try guest.protect()
        let hosts = try hosts
        let first = try diskBytesSent(guest)
        try guest.unprotect()
        XCTAssertFalse(try hosts.virsh(.a, "dumpxml", guest.name).out.contains("<mirror"), "no job stays behind")
        XCTAssertTrue(FileManager.default.fileExists(atPath: try image(.b)), "the replica stays")
        XCTAssertNil(try hosts.domainState(.b, guest.name))
        try guest.waitForTicks(250)
        try guest.protect()
        try guest.waitUntilWholeAgain()
        let second = try diskBytesSent(guest)
        report("protect again after unprotect: \(second) bytes of a disk of \(Self.diskBytes); the first time \(first)")
        XCTAssertLessThan(second, Self.diskBytes / 2)
        try failOver(guest)
        try assertInOrder(guest)

        try guest.protect()
        try guest.unprotect()
        let kept = guest.home.other
        XCTAssertTrue(FileManager.default.fileExists(atPath: try image(kept)))
        // The guest's first disk is nobody's to delete; the replica that was made for it is.
        try guest.protect()
        let result = try hosts.shadowVirt(guest.home, "unprotect", guest.name, "--delete-replica")
        XCTAssertEqual(result.status, 0, result.summary)
        XCTAssertTrue(FileManager.default.fileExists(atPath: try image(kept)), "not created by us: \(result.summary)")
        XCTAssertTrue((result.out + result.err).contains("stays"), result.summary)
        try assertInOrder(guest)
    }

    func testUnprotectDeletesTheReplica() throws {
        let guest = try freshDiskGuest()
        try guest.protect()
        let result = try hosts.shadowVirt(.a, "unprotect", guest.name, "--delete-replica")
        XCTAssertEqual(result.status, 0, result.summary)
        XCTAssertFalse(FileManager.default.fileExists(atPath: try image(.b)), "the replica is gone: \(result.summary)")
        XCTAssertTrue(FileManager.default.fileExists(atPath: try image(.a)))
        try assertInOrder(guest)
        try guest.protect()
        try guest.waitUntilWholeAgain()
        try failOver(guest)
        try assertInOrder(guest)
    }
}
