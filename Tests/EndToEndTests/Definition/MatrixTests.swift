import Foundation
import XCTest

/// Guests of many kinds go over to the other host and come back by libvirt's own migration. What they were is what they are.
/// $E2E_KINDS names those to try (`pc-numa,q35-sata`), all without.
final class MatrixTests: DefinitionTestCase {
    /// Engines by their names in `status`, how `protect` is asked for one, and the kinds that are tried with it (nil: all).
    private static let engines: [(name: String, options: [String], kinds: Set<String>?)] = [
        ("continuous", ["--interval", "20ms"], nil),
        // What differs is how the state is captured; what becomes of it is the same. (`pc` is what PassTests has all the time.)
        ("periodic", ["--interval", "1s", "--engine", "periodic"], rounds(1, thorough: 3) == 1 ? ["q35-dimm"] : ["pc", "q35-sata", "q35-dimm"]),
    ]

    private static let kinds = [
        GuestKind(name: "pc", disk: "virtio"),
        GuestKind(name: "pc-numa", video: "vga", memory: "2 cells", vcpus: 2, cpu: "<cpu>\(GuestKind.cells)</cpu>"),
        GuestKind(name: "pc-flash", video: "cirrus", firmware: "flash", edits: [GuestKind.flash("pc-flash")]),
        GuestKind(name: "q35-sata", machine: "q35", disk: "sata", video: "qxl"),
        GuestKind(name: "q35-dimm", machine: "q35", video: "virtio", memory: "2 cells + DIMM", more: "shared, 2 of 4 vCPUs", vcpus: 2, cpu: "<cpu>\(GuestKind.cells)</cpu>",
                  memoryBacking: "<source type='memfd'/><access mode='private'/><allocation mode='immediate'/>",
                  devices: "<memory model='dimm'><target><size unit='MiB'>128</size><node>1</node></target></memory>",
                  edits: [("<memory unit='MiB'>64</memory>", "<maxMemory slots='4' unit='GiB'>4</maxMemory><memory unit='MiB'>192</memory>"),
                          ("<vcpu>2</vcpu>", "<vcpu current='2'>4</vcpu>"), ("cpus='1'", "cpus='1-3'")]),
        GuestKind(name: "q35-flash", machine: "q35", video: "vga", memory: "2 cells", firmware: "flash", vcpus: 2, cpu: "<cpu>\(GuestKind.cells)</cpu>", edits: [GuestKind.flash("q35-flash")]),
        // What virt-manager gives a guest by itself.
        GuestKind(name: "q35-desktop", machine: "q35", video: "qxl", more: "SPICE, USB, sound, agent", devices: """
            <graphics type='spice' autoport='yes' listen='127.0.0.1'/><sound model='ich9'/><input type='tablet' bus='usb'/><watchdog model='i6300esb' action='reset'/>
            <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel><channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
            <redirdev bus='usb' type='spicevmc'/><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng><controller type='scsi' model='virtio-scsi'/>
            """, edits: [("<controller type='usb' model='none'/>", "<controller type='usb' model='qemu-xhci' ports='15'/>"), ("<memballoon model='none'/>", "<memballoon model='virtio'/>")]),
        GuestKind(name: "q35-model", machine: "q35", more: "host-model, balloon",
                  // ARCH_CAPABILITIES is what nested KVMs stumble over.
                  cpu: "<cpu mode='host-model'><feature policy='disable' name='arch-capabilities'/></cpu>",
                  edits: [("<memballoon model='none'/>", "<memballoon model='virtio'/>"), ("<vcpu>", "<currentMemory unit='MiB'>48</currentMemory><vcpu>")]),
        GuestKind(name: "q35-passed", machine: "q35", more: "host-passthrough", cpu: "<cpu mode='host-passthrough'><feature policy='disable' name='arch-capabilities'/></cpu>"),
    ]

    func testMatrix() throws {
        let hosts = try hosts
        let chosen = ProcessInfo.processInfo.environment["E2E_KINDS"]?.split(separator: ",").map(String.init)
        for host in Host.allCases { try FileManager.default.copyItem(atPath: "/usr/share/seabios/bios-256k.bin", toPath: hosts.root(host) + GuestKind.code) }
        let variables = hosts.root(.a) + (GuestKind.variables("x") as NSString).deletingLastPathComponent
        try FileManager.default.createDirectory(atPath: variables, withIntermediateDirectories: true)
        var table: [[String]] = [["engine", "machine", "disk", "video", "memory", "firmware", "more", "swap", "outage", "migrate"]]
        for engine in Self.engines {
            for kind in Self.kinds where (chosen?.contains(kind.name) ?? true) && (engine.kinds?.contains(kind.name) ?? true) {
                var row = [engine.name, kind.machine, kind.disk, kind.video, kind.memory, kind.firmware, kind.more]
                do {
                    if kind.firmware == "flash" { try Data(count: 128 << 10).write(to: URL(fileURLWithPath: hosts.root(.a) + GuestKind.variables(kind.name))) }
                    row += try thereAndBack(kind, engine.name, engine.options)
                } catch let skip as XCTSkip {
                    row += ["skipped: \(skip.message ?? "")", "", ""]
                } catch {
                    XCTFail("\(kind.name) with engine \(engine.name): \(error)")
                    row += ["FAILED", "", ""]
                }
                table.append(row)
            }
        }
        let widths = table[0].indices.map { column in table.map { $0[column].count }.max() ?? 0 }
        for row in table { report("matrix  " + zip(row, widths).map { $0.padding(toLength: $1 + 2, withPad: " ", startingAt: 0) }.joined()) }
    }

    /// Protected, swapped to host B, let go, migrated back to A with `virsh migrate`.
    private func thereAndBack(_ kind: GuestKind, _ engine: String, _ options: [String]) throws -> [String] {
        let guest = try boot(kind)
        defer {
            guest.remove()
            try? FileManager.default.removeItem(atPath: hosts.root(.b) + GuestKind.variables(kind.name))
        }
        let live = try Visible(dumpXML(.a, guest)), kept = try dumpXML(.a, guest, "--inactive")
        let protected = try guest.tryToProtect(options)
        try require(protected.succeeded, "protect: \(protected.summary)")
        try guest.waitUntilProtected()
        try require(try hosts.status(.a, guest.name)?.engine == engine, "another engine")
        let swapped = Clock.seconds
        try guest.swap()
        let seconds = Clock.seconds - swapped
        try guest.waitForTicks(100, limit: 20)
        try waitForDefinition(.b, guest)
        let keptThere = try dumpXML(.b, guest, "--inactive")
        try require(keptThere == kept, "its persistent definition is another one: \(keptThere)")
        try require(!kept.contains("-incoming"), "-incoming in the persistent definition")
        let there = try Visible(dumpXML(.b, guest))
        try require(there == live, "the guest sees another machine:\n\(live)\n\(there)")
        try require(try hosts.domainState(.a, guest.name) == nil, "still defined where it came from")
        let outage = guest.outages.last ?? .nan
        try migrate(guest)
        try guest.waitForTicks(100, limit: 20)
        try require(try dumpXML(.a, guest, "--inactive") == kept, "its persistent definition is another one after `virsh migrate`")
        try guest.checkBooks()
        try guest.checkNeverTwice()
        return [String(format: "%.0f ms", seconds * 1000), String(format: "%.0f ms", outage * 1000), String(format: "%.0f ms", (guest.outages.last ?? .nan) * 1000)]
    }
}

/// Of a domain's live XML what its guest can see: devices with their models, addresses and MACs, CPU, memory, firmware; not where on the host they
/// come from.
struct Visible: Equatable, CustomStringConvertible {
    var lines: [String]

    init(_ xml: String) throws {
        // Whatever names the host's side of a device, or what a shadow has to have.
        let ofTheHost = ["<source ", "<target dev='vnet", "<alias ", "<label>", "<imagelabel>", "<qemu:", "</qemu:", "<domain ", "<memoryBacking", "</memoryBacking", "<access ",
                         "<allocation ", "<backend ", "<graphics ", "<listen ", "<resource", "</resource", "<partition", "<console ", "</memballoon", "<backenddomain", "<mirror",
                         "</mirror", "<format ", "<job", "<seclabel", "</seclabel", "<backingStore"]
        // Elements of one kind may change places, but stay whole: what is indented deeper belongs to the one before.
        lines = xml.split(separator: "\n").filter { line in !ofTheHost.contains { line.drop { $0 == " " }.hasPrefix($0) } }
            .reduce(into: [String]()) { groups, line in
                let text = String(line.drop { $0 == " " })
                if line.prefix(while: { $0 == " " }).count > 4 || text.hasPrefix("</"), !groups.isEmpty { groups[groups.count - 1] += text } else { groups.append(text) }
            }
            // "<serial type='pty' tty='/dev/pts/3'>"
            .map { $0.replacingOccurrences(of: " tty='[^']*'", with: "", options: .regularExpression) }
            .sorted()
    }

    var description: String { lines.joined(separator: "\n") }
}
