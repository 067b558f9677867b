import Foundation
import XCTest

/// No room on the shadow's host: the guest goes on, the reason is said, and protection comes back by itself when there is room again.
final class DiskFullTests: DisksTestCase {
    /// The replicas' pool is full when they have to grow.
    func testPoolIsFull() throws {
        let guest = try freshDiskGuest()
        let hosts = try hosts
        let folder = "/var/lib/libvirt/small"
        try mount(.b, folder, mebibytes: 6)
        try hosts.definePool(.b, "small", folder)
        try fill(.b, folder)
        let refused = try guest.tryToProtect(["--pool", "small"])
        XCTAssertEqual(refused.status, 1, refused.summary)
        XCTAssertTrue(refused.err.contains("MiB free in pool small of hostB") || refused.err.contains("No space left"), refused.summary)
        XCTAssertTrue(guest.isTicking)
        try makeRoom(.b, folder)
        try guest.protect("--pool", "small")

        // The replica is given up with the service's death, and there is no room to make it whole again. Not under the worker's hands: a
        // replica is nobody else's while it is locked, and what the worker knows of it, it saves at its end.
        let mark = guest.serial.mark
        let service = hosts.service(.b), workers = service.workers
        service.unplug()
        service.kill()
        try waitUntil("the service and its workers are gone", limit: 10) { service.pid == nil && !workers.contains(where: Processes.isAlive) }
        try require(try hosts.run(.b, ["fallocate", "--punch-hole", "--offset", "0", "--length", "4M", "\(folder)/ledger.img"]).succeeded, "punch hole")
        try fill(.b, folder)
        try service.start()
        try assertDegraded(guest, "No space left")
        try makeRoom(.b, folder)
        try guest.waitUntilWholeAgain(limit: 40)
        XCTAssertLessThan(guest.serial.largestGap(since: mark), 1.5, "the guest stood still")
        try failOver(guest)
        try assertInOrder(guest, ticks: 3000)
    }

    /// The journal has no room: the epoch before remains, and the guest can go on from it.
    func testStateFolderIsFull() throws {
        let folder = "/var/lib/shadow-virt/replicas"
        let guest = try freshDiskGuest(prepare: { try mount(.b, folder, mebibytes: 2) })
        try guest.protect()
        let mark = guest.serial.mark
        // At once, while the journal is still short.
        try fill(.b, folder)
        try assertDegraded(guest, "No space left")
        XCTAssertLessThan(guest.serial.largestGap(since: mark), 1.5, "the guest stood still")
        try makeRoom(.b, folder)
        try guest.waitUntilWholeAgain(limit: 40)
        try failOver(guest)
        try assertInOrder(guest, ticks: 3000)
    }

    /// QEMU dies while the shadow cannot follow: what it has is whole, however old.
    func testFailoverWhileFull() throws {
        let folder = "/var/lib/shadow-virt/replicas"
        let guest = try freshDiskGuest(prepare: { try mount(.b, folder, mebibytes: 2) })
        try guest.protect()
        try fill(.b, folder)
        try assertDegraded(guest, "No space left")
        usleep(500_000)
        try guest.killQEMU()
        usleep(500_000)
        try makeRoom(.b, folder)
        do { try guest.followToOther(mayRepeat: .max, limit: 30) } catch {
            let log = try hosts.service(.a).logText.suffix(1500)
            XCTAssertTrue(log.contains("there is no shadow to take over"), "neither runs it anywhere nor is it said why: \(log)")
            leaveDisorder()
            return print("No shadow to take over: \(log)")
        }
        try assertInOrder(guest)
    }

    // MARK: Parts

    private func assertDegraded(_ guest: LedgerGuest, _ reason: String) throws {
        let hosts = try hosts
        var seen = ""
        try waitUntil("degraded, because of '\(reason)' (last: \(seen); \(hosts.service(.b).logText.suffix(800)))", limit: 30) {
            guard let status = try hosts.status(.a, guest.name) else { return false }
            seen = "\(status.state): \(status.reason)"
            return status.state == "degraded" && status.reason.contains(reason)
        }
        try guest.waitForTicks(50)
    }

    /// A small file system on that host alone.
    private func mount(_ host: Host, _ folder: String, mebibytes: Int) throws {
        let hosts = try hosts
        let script = "mkdir -p \(folder) && mount -t tmpfs -o size=\(mebibytes)M,mode=0700 tmpfs \(folder)"
        let result = try hosts.run(host, ["sh", "-c", script])
        try require(result.succeeded, result.summary)
    }

    private func fill(_ host: Host, _ folder: String) throws {
        _ = try hosts.run(host, ["sh", "-c", "cat /dev/zero >\(folder)/filler 2>/dev/null"])
    }

    private func makeRoom(_ host: Host, _ folder: String) throws {
        let result = try hosts.run(host, ["rm", "\(folder)/filler"])
        try require(result.succeeded, result.summary)
    }
}
