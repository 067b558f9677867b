import Foundation
import Glibc
import XCTest

/// At a held epoch the primary's disk and its replica are equal, byte by byte.
final class HeldEpochTests: DisksTestCase {
    /// The shadow's service is stopped as a process: its worker commits the last epoch of a swap, and the guest then waits for an answer.
    func testImagesAreEqualWhileTheGuestIsHeld() throws {
        let guest = try protectedGuest()
        let hosts = try hosts
        for round in 1...rounds(3, thorough: 6) {
            pauseAtRandom(0.05...0.5)
            let target = guest.home.other
            let replica = try replica(of: guest)
            guard let service = hosts.service(target).pid else { throw TestFailure("No service on \(target.name)") }
            kill(service, SIGSTOP)
            let swap = try ChildProcess([TwoHosts.script, "exec", hosts.folder, guest.home.rawValue, TwoHosts.binary, "swap", guest.name])
            defer { swap.signal(SIGKILL) }
            defer { kill(service, SIGCONT) }
            try waitUntil("The guest is held (round \(round), \(hosts.service(guest.home).logText.suffix(800)))", limit: 5, every: 0.005) {
                hosts.qemu(guest.home, guest.name).flatMap { Processes.stat($0)?.state } == "T"
            }
            try waitUntil("The last epoch is committed", limit: 3, every: 0.05) {
                guard let status = try hosts.status(guest.home, guest.name) else { return false }
                return status.state == "swapping" && status.committed == status.epoch
            }
            let compared = try compare(image(guest.home), replica)
            XCTAssertEqual(compared.status, 0, "round \(round): \(compared.summary)")
            // Too long for the primary to wait: it gives the swap up. The guest must run in one place all the same.
            if round % 3 == 0 { usleep(17_000_000) }
            kill(service, SIGCONT)
            guard let status = swap.wait(limit: 40) else { throw TestFailure("swap does not end (round \(round))") }
            if status == 0 {
                try guest.followToOther(mayRepeat: 0)
                try guest.waitForTicks(25)
                try guest.protect()
            } else {
                XCTAssertEqual(round % 3, 0, "the swap was given up early in round \(round): \(hosts.service(guest.home).logText.suffix(1500))")
                try waitUntil("The guest runs on", limit: 10) { guest.isTicking }
            }
            try guest.waitUntilWholeAgain(limit: 30)
            try guest.checkNeverTwice()
        }
        try assertInOrder(guest, ticks: 1500)
    }
}
