import Glibc
import XCTest

/// Parts of shadow-virt are killed: the guest hardly notices, and protection comes back by itself.
final class CrashTests: HostsTestCase {
    private let times = rounds(6, thorough: 20)

    func testSourceWorkerKilled() throws {
        try killed("source worker") { guest in try killWorker(on: guest.home) }
    }

    func testShadowWorkerKilled() throws {
        try killed("shadow worker") { guest in try killWorker(on: guest.home.other) }
    }

    func testServiceOfThePrimaryKilled() throws {
        try killed("service of the primary") { guest in try killService(on: guest.home) }
    }

    func testServiceOfTheShadowKilled() throws {
        try killed("service of the shadow") { guest in try killService(on: guest.home.other) }
    }

    /// Killed while the first copy is under way.
    func testSourceWorkerKilledInTheFirstCopy() throws {
        let guest = try unprotectedGuest()
        let hosts = try hosts
        let mark = guest.serial.mark
        let started = try hosts.run(guest.home, [TwoHosts.binary, "protect", guest.name, "--to", guest.home.other.name, "--without-disks", "--no-policy", "--no-wait"])
        try require(started.succeeded, started.summary)
        try waitUntil("a source worker", limit: 10, every: 0.001) { !hosts.service(guest.home).workers.isEmpty }
        try killWorker(on: guest.home)
        try guest.waitUntilWholeAgain()
        XCTAssertLessThan(guest.serial.largestGap(since: mark), 1)
        try guest.swap()
        try guest.waitForTicks(100)
        try guest.checkBooks()
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

    private func killed(_ what: String, _ strike: (LedgerGuest) throws -> Void) throws {
        let guest = try protectedGuest()
        let hosts = try hosts
        try guest.waitUntilWholeAgain()
        var gaps: [Double] = [], recoveries: [Double] = []
        for round in 1...times {
            pauseAtRandom(0.05...0.7)
            let mark = guest.serial.mark
            let begin = Clock.seconds
            try strike(guest)
            do { try guest.waitUntilWholeAgain(limit: 15) } catch {
                throw TestFailure("Round \(round): \(error); guest \(guest.isTicking ? "runs" : "STANDS STILL"), status \(String(describing: try? hosts.status(guest.home, guest.name)?.state)) "
                    + "\((try? hosts.status(guest.home, guest.name))??.reason ?? "")")
            }
            recoveries.append(Clock.seconds - begin)
            gaps.append(guest.serial.largestGap(since: mark))
        }
        report("\(what) killed: guest's largest silence \(gaps.inMilliseconds); protected again after \(recoveries.inMilliseconds)")
        XCTAssertLessThan(gaps.max() ?? 0, 1, "the guest stood still")
        // What the shadow holds after all this is whole.
        try guest.swap()
        try guest.waitForTicks(250)
        try guest.checkBooks()
        try guest.checkNeverTwice()
    }
}
