import Glibc
import XCTest

/// What serves the shadow is killed: the replica is always that of some committed epoch, and the guest hardly notices.
final class ShadowSideTests: DisksTestCase {
    private let times = rounds(12, thorough: 20)

    func testWorkerAndServiceKilledInTurn() throws {
        let guest = try protectedGuest()
        var recoveries: [Double] = [], gaps: [Double] = []
        for round in 1...times {
            pauseAtRandom(0.02...0.5)
            let mark = guest.serial.mark
            let begin = Clock.seconds
            let isWorker = round % 2 == 1
            if isWorker { try killWorker(on: guest.home.other) } else { try killService(on: guest.home.other) }
            do { try guest.waitUntilWholeAgain(limit: 30) } catch {
                throw TestFailure("Round \(round), \(isWorker ? "worker" : "service") killed: \(error); the guest \(guest.isTicking ? "runs" : "STANDS STILL")")
            }
            recoveries.append(Clock.seconds - begin)
            gaps.append(guest.serial.largestGap(since: mark))
            if round % 4 == 0 { try goOver(guest, "after round \(round)") }
        }
        try guest.lookAtEverything()
        try guest.checkBooks()
        try guest.checkNeverTwice()
        report("shadow's side killed: protected again after \(recoveries.inMilliseconds); the guest's largest silence \(gaps.inMilliseconds)")
        XCTAssertLessThan(gaps.max() ?? 0, 1.5, "the guest stood still")
    }

    /// Killed in a resync: the replica is nobody's epoch then, and the guest must not be started from it.
    func testKilledInTheFirstCopy() throws {
        let guest = try unprotectedGuest()
        let hosts = try hosts
        for round in 1...rounds(4, thorough: 6) {
            let result = try guest.tryToProtect(["--no-wait"])
            try require(result.succeeded, result.summary)
            pauseAtRandom(0...0.5)
            if round % 2 == 0 { try killService(on: guest.home.other) } else { hosts.service(guest.home.other).workers.forEach { kill($0, SIGKILL) } }
            do { try guest.waitUntilWholeAgain(limit: 30) } catch { throw TestFailure("Round \(round): \(error)") }
            try goOver(guest, "round \(round)", protectsBack: false)
        }
        try assertInOrder(guest, ticks: 1500)
    }

    /// Both at once: what the worker had committed, and nothing else, is what the guest goes on from; or there is no shadow, and that is said.
    func testQEMUDiesRightAfterTheShadowWorker() throws {
        for round in 1...5 {
            let guest = try protectedGuest()
            try guest.waitUntilWholeAgain()
            pauseAtRandom(0.05...0.4)
            let target = guest.home.other
            try hosts.service(target).workers.forEach { kill($0, SIGKILL) }
            usleep(UInt32(random(0...0.03) * 1e6))
            try guest.killQEMU()
            do { try guest.followToOther(mayRepeat: 50, limit: 30) } catch {
                throw TestFailure("Round \(round): \(error); shadow's side: \(try hosts.service(target).logText.suffix(1500))")
            }
            try assertInOrder(guest)
        }
    }

    private func goOver(_ guest: LedgerGuest, _ when: String, protectsBack: Bool = true) throws {
        do { try failOver(guest) } catch { throw TestFailure("Failover \(when): \(error)") }
        try guest.waitForTicks(100)
        try guest.checkBooks()
        guard protectsBack else { return }
        try guest.protect()
        try guest.waitUntilWholeAgain()
    }

    private func killWorker(on host: Host) throws {
        let workers = try hosts.service(host).workers
        try require(workers.count == 1, "One worker expected on \(host.name), found \(workers.count)")
        kill(workers[0], SIGKILL)
        try waitUntil("worker \(workers[0]) is gone", limit: 5, every: 0.005) { !Processes.isAlive(workers[0]) }
    }

    private func killService(on host: Host) throws {
        let service = try hosts.service(host)
        guard let pid = service.pid else { throw TestFailure("No service on \(host.name)") }
        service.kill()
        try waitUntil("a new service on \(host.name)", limit: 10, every: 0.01) { service.pid.map { $0 != pid } ?? false }
    }
}
