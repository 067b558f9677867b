import Glibc
import XCTest

/// QEMU dies, and a part of shadow-virt with it: the shadow must take over all the same.
final class DoubleFaultTests: HostsTestCase {
    func testQEMUAndService() throws {
        try dies("service") { [self] host, _ in try hosts.service(host).kill() }
    }

    func testQEMUAndSourceWorker() throws {
        try dies("source worker") { _, workers in workers.forEach { kill($0, SIGKILL) } }
    }

    func testQEMUAndLibvirtd() throws {
        try dies("libvirtd") { [self] host, _ in
            try hosts.hosts("libvirtd-kill", host.rawValue)
            usleep(500_000)
            try hosts.hosts("libvirtd-start", host.rawValue)
        }
    }

    private func dies(_ what: String, _ strike: (Host, [pid_t]) throws -> Void) throws {
        var outages: [Double] = [], repeated: [Int] = []
        for round in 1...5 {
            let guest = try protectedGuest()
            try guest.waitUntilWholeAgain()
            pauseAtRandom(0.05...0.5)
            let home = guest.home
            let workers = try hosts.service(home).workers
            try guest.killQEMU()
            usleep(UInt32(random(0...0.2) * 1e6))
            try strike(home, workers)
            // What the worker held dies with it.
            do { try guest.followToOther(mayRepeat: 50, limit: 30) } catch { throw TestFailure("Round \(round): \(error)") }
            try guest.waitForTicks(50)
            repeated.append(try guest.checkBooks().handOvers.last!.repeatedTicks)
            outages.append(guest.outages.last!)
            try guest.checkNeverTwice()
        }
        report("QEMU and \(what) die: outage \(outages.inMilliseconds), ticks repeated \(repeated)")
    }
}
