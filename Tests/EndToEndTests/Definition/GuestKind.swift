import Foundation
import XCTest

/// A sort of machine that a guest can be, for domain.sh and as an edit of what that prints.
struct GuestKind {
    var name: String
    var machine = "pc"
    var disk = "virtio"
    var video = "none"
    var memory = "one block"
    var firmware = "BIOS"
    var more = ""
    var vcpus = 1
    var cpu = ""
    var memoryBacking = ""
    var devices = ""
    /// Replacements of the last resort.
    var edits: [(String, String)] = []

    /// Two NUMA cells with the border inside what the guest fills and checks, so that both blocks are used: 2 to 3 MiB are filled, its
    /// vCPUs' regions follow.
    static let cells = "<numa><cell id='0' cpus='0' memory='2560' unit='KiB'/><cell id='1' cpus='1' memory='62976' unit='KiB'/></numa>"

    /// Flash devices, with SeaBIOS where UEFI usually is: OVMF needs a KVM that runs code with paging.
    static func flash(_ name: String) -> (String, String) {
        ("</type>", "</type><loader readonly='yes' type='pflash'>\(code)</loader><nvram>\(variables(name))</nvram>")
    }
    static let code = "/var/lib/libvirt/images/code.fd"
    static func variables(_ name: String) -> String { "/var/lib/libvirt/qemu/nvram/\(name)_VARS.fd" }

    var keys: [String] { ["MACHINE=\(machine)"] + (disk == "sata" ? ["BUS=sata", "TARGET=sda"] : []) }

    func edit(_ xml: String) -> String {
        var xml = xml
        func put(_ new: String, before old: String) { xml = xml.replacingOccurrences(of: old, with: new + old) }
        if !memoryBacking.isEmpty { put("<memoryBacking>\(memoryBacking)</memoryBacking>", before: "<features>") }
        if !cpu.isEmpty { put(cpu, before: "<features>") }
        for (old, new) in edits { xml = xml.replacingOccurrences(of: old, with: new) }
        let screen = video == "none" ? "" : "<video><model type='\(video)'/></video><graphics type='vnc' listen='127.0.0.1'/>"
        put(screen + devices, before: "</devices>")
        return xml
    }
}

/// Tests of one guest of a kind at a time, on hosts that stay.
class DefinitionTestCase: HostsTestCase {
    private var guests: [LedgerGuest] = []

    /// Boots a guest of this kind on host A, unless the machine cannot have one.
    func boot(_ kind: GuestKind) throws -> LedgerGuest {
        let guest = try LedgerGuest(try hosts, name: kind.name)
        guests.append(guest)
        do {
            try guest.boot(on: .a, vcpus: kind.vcpus, keys: kind.keys, edit: kind.edit)
        } catch {
            // QEMU's words for what this machine's KVM or kernel does not offer.
            let words = "\(error)"
            for reason in ["failed to set MSR", "is not a valid device model name", "does not support video", "Cannot allocate memory", "is not supported with this QEMU binary"]
            where words.contains(reason) { throw XCTSkip("No guest `\(kind.name)` on this machine: \(reason)") }
            throw error
        }
        return guest
    }

    override func tearDownWithError() throws {
        try super.tearDownWithError()
        for guest in guests {
            for host in Host.allCases { _ = try? hosts.shadowVirt(host, "unprotect", guest.name) }
            guest.remove()
            guest.forget()
        }
        guests = []
    }

    func dumpXML(_ host: Host, _ guest: LedgerGuest, _ more: String...) throws -> String {
        let dumped = try hosts.run(host, ["virsh", "-q", "dumpxml", guest.name, "--security-info"] + more)
        try require(dumped.succeeded, "virsh dumpxml: \(dumped.summary)")
        return dumped.out
    }

    /// `virsh migrate` of a guest that nobody protects any more.
    func migrate(_ guest: LedgerGuest) throws {
        let target = guest.home.other
        let moved = try hosts.virsh(guest.home, "migrate", "--live", "--persistent", "--undefinesource", "--unsafe", guest.name, "qemu+tcp://\(target.address)/system")
        try require(moved.succeeded, "virsh migrate to \(target.name): \(moved.summary)")
        try guest.followToOther(mayRepeat: 0)
    }

    /// Seconds until `guest`'s persistent definition on `host` is there; it comes after the guest runs.
    func waitForDefinition(_ host: Host, _ guest: LedgerGuest) throws {
        try waitUntil("\(guest.name) is defined on \(host.name)", limit: 10) { try hosts.virsh(host, "dominfo", guest.name).out.contains("Persistent:     yes") }
    }
}
