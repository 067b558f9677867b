import Foundation
import Glibc
import XCTest

/// Whatever may be restarted is, at random moments: service (as an upgrade does it, or killed), libvirtd, workers, on either host. The guest runs on,
/// and its protection comes back. E2E_RESTARTS=50 for more rounds than the suite has time for.
final class RestartTests: HostsTestCase {
    private enum Victim: String, CaseIterable {
        case serviceStopped = "service stopped and started", serviceKilled = "service killed", libvirtdKilled = "libvirtd killed", workerKilled = "worker killed"
    }

    private let rounds = ProcessInfo.processInfo.environment["E2E_RESTARTS"].flatMap { Int($0) } ?? 8

    func testAtRandomMoments() throws {
        let guest = try protectedGuest()
        try guest.waitUntilWholeAgain()
        var gaps: [Double] = [], recoveries: [Double] = []
        for round in 1...rounds {
            // Each kind on each host comes up; the order and the moment are luck.
            let kinds = Victim.allCases.count
            let turn = (round + Int(random(0...7.99))) % (kinds * 2)
            let victim = Victim.allCases[turn % kinds], host = turn < kinds ? guest.home : guest.home.other
            pauseAtRandom(0.05...0.8)
            let mark = guest.serial.mark
            let begin = Clock.seconds
            try restart(victim, on: host)
            do { try guest.waitUntilWholeAgain(limit: 20) } catch {
                throw TestFailure("Round \(round), \(victim.rawValue) on \(host.name): \(error); guest \(guest.isTicking ? "runs" : "STANDS STILL")")
            }
            recoveries.append(Clock.seconds - begin)
            gaps.append(guest.serial.largestGap(since: mark))
            XCTAssertLessThan(gaps[gaps.count - 1], 1, "\(victim.rawValue) on \(host.name): the guest stood still")
        }
        report("\(rounds) restarts at random moments: guest's largest silence \(gaps.inMilliseconds); protected again after \(recoveries.inMilliseconds)")
        try guest.swap()
        try guest.waitForTicks(100)
        try guest.checkBooks()
        try guest.checkNeverTwice()
    }

    private func restart(_ victim: Victim, on host: Host) throws {
        let hosts = try hosts
        switch victim {
        case .serviceStopped:
            try hosts.service(host).stop()
            try hosts.service(host).start()
            try hosts.waitForService(host)
        case .serviceKilled:
            let service = hosts.service(host)
            guard let pid = service.pid else { throw TestFailure("No service on \(host.name)") }
            service.kill()
            try waitUntil("a new service on \(host.name)", limit: 10, every: 0.01) { service.pid.map { $0 != pid } ?? false }
        case .libvirtdKilled:
            try hosts.hosts("libvirtd-kill", host.rawValue)
            try hosts.hosts("libvirtd-start", host.rawValue)
        case .workerKilled:
            for worker in hosts.service(host).workers { kill(worker, SIGKILL) }
        }
    }
}
