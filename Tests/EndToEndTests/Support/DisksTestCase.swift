import Foundation
import XCTest

/// Tests whose guest writes to a disk that is part of the epochs. Both hosts have the storage pool `default`; only host A has the disk
/// when the guest is booted.
class DisksTestCase: HostsTestCase {
    static let images = "/var/lib/libvirt/images"
    static let diskBytes = 4 << 20

    override func boot(_ guest: LedgerGuest) throws {
        try provideStorage()
        guest.hasDisks = true
        try guest.boot(on: .a)
    }

    /// The pool on both hosts, the guest's disk on host A.
    func provideStorage() throws {
        let hosts = try hosts
        try hosts.defineDefaultPools()
        for host in Host.allCases { try? FileManager.default.removeItem(atPath: image(host)) }
        try FileManager.default.copyItem(atPath: TwoHosts.guests.get() + "/ledger-disk.img", toPath: image(.a))
    }

    /// Another guest in place of the one there is, on fresh hosts: `prepare` readies the disks before it boots.
    func freshDiskGuest(keys: [String] = [], edit: (String) -> String = { $0 }, prepare: () throws -> Void = {}) throws -> LedgerGuest {
        try freshHosts()
        let guest = try newGuest()
        try provideStorage()
        guest.hasDisks = true
        try prepare()
        try guest.boot(on: .a, keys: keys, edit: edit)
        return guest
    }

    // MARK: Looking

    /// A file of a host as this process sees it.
    func image(_ host: Host, _ name: String = "ledger.img") throws -> String { try hosts.root(host) + "\(Self.images)/\(name)" }

    /// Where the replica of a disk lies on the shadow's host.
    func replica(of guest: LedgerGuest, _ target: String = "vda") throws -> String {
        let disks = try hosts.status(guest.home, guest.name)?.disks
        guard let path = disks?.first(where: { $0.target == target })?.replica else { throw TestFailure("No replica of \(target): \(String(describing: disks))") }
        return try hosts.root(guest.home.other) + path
    }

    /// Bytes of disk writes sent since protection began, first copy included.
    func diskBytesSent(_ guest: LedgerGuest) throws -> Int { try hosts.status(guest.home, guest.name)?.diskBytesSent ?? 0 }

    /// Every byte of two images, as their hosts' QEMU would read them. Nobody may be writing.
    func compare(_ first: String, _ second: String) throws -> CommandResult {
        try runCommand(["qemu-img", "compare", "-U", "-f", "raw", "-F", "raw", first, second], limit: 30)
    }

    /// The guest runs on, has looked at everything, and its books are in order: memory, disks, and one copy only.
    func assertInOrder(_ guest: LedgerGuest, ticks: Int = 250) throws {
        try guest.waitForTicks(ticks, limit: 20)
        try guest.checkBooks()
        try guest.checkNeverTwice()
    }

    /// Kills the guest's QEMU and follows it to the other host.
    func failOver(_ guest: LedgerGuest, mayRepeat: Int = LedgerGuest.ticksOfAnEpoch) throws {
        try guest.killQEMU()
        try guest.followToOther(mayRepeat: mayRepeat)
    }
}

extension TwoHosts {
    /// Libvirt's usual pool, where a host has none of that name.
    func defineDefaultPools() throws {
        for host in Host.allCases where try !virsh(host, "pool-info", "default").succeeded { try definePool(host, "default", DisksTestCase.images) }
    }

    func definePool(_ host: Host, _ name: String, _ folder: String) throws {
        for words in [["pool-define-as", name, "dir", "--target", folder], ["pool-start", name], ["pool-autostart", name]] {
            let result = try run(host, ["virsh", "-q"] + words)
            try require(result.succeeded, "virsh \(words.joined(separator: " ")) on \(host.name): \(result.summary)")
        }
    }
}
