import ControlProtocol
import Foundation
import FoundationXML
import Libvirt

/// What a domain's XML says, as far as replication is concerned, and the shadow's XML made from it.
struct DomainDefinition {
    static let qemuNamespace = "http://libvirt.org/schemas/domain/qemu/1.0"

    let xml: String
    let root: XMLElement

    init(xml: String) throws {
        self.xml = xml
        guard let document = try? XMLDocument(xmlString: xml), let root = document.rootElement(), root.name == "domain" else {
            throw ControlFailure("Libvirt's XML of the domain cannot be parsed")
        }
        self.root = root
    }

    func elements(_ path: String) -> [XMLElement] { (try? root.nodes(forXPath: path))?.compactMap { $0 as? XMLElement } ?? [] }
    func values(_ path: String) -> [String] { (try? root.nodes(forXPath: path))?.compactMap(\.stringValue) ?? [] }
    func text(_ path: String) -> String? { values(path).first }

    var name: String { text("name") ?? "" }
    var uuid: String { (text("uuid") ?? "").lowercased() }
    /// `kvm` or `qemu`.
    var type: String { root.attribute(forName: "type")?.stringValue ?? "" }
    var machine: String { text("os/type/@machine") ?? "" }
    var architecture: String { text("os/type/@arch") ?? "" }
    var emulator: String? { text("devices/emulator") }
    var virtualCPUs: Int { Int(text("vcpu")?.trimmingCharacters(in: .whitespacesAndNewlines) ?? "") ?? 1 }
    /// RAM that is there now: `<memory>` counts memory devices as well.
    var memoryBytes: UInt64 { Self.bytes(text("memory"), unit: text("memory/@unit")) }

    /// Libvirt's way to write a size; KiB unless it says otherwise.
    static func bytes(_ number: String?, unit: String?) -> UInt64 {
        let units: [String: UInt64] = ["b": 1, "bytes": 1, "KB": 1000, "k": 1024, "KiB": 1024, "MB": 1_000_000, "M": 1 << 20, "MiB": 1 << 20,
                                       "GB": 1_000_000_000, "G": 1 << 30, "GiB": 1 << 30, "TB": 1_000_000_000_000, "T": 1 << 40, "TiB": 1 << 40]
        return (UInt64(number?.trimmingCharacters(in: .whitespacesAndNewlines) ?? "") ?? 0) &* (units[unit ?? "KiB"] ?? 1024)
    }

    /// The CPU element, for comparison with another host; nil when the domain leaves it to QEMU.
    var cpuXML: String? { elements("cpu").first.map(\.xmlString) }

    var disks: [Disk] { elements("devices/disk").map(Disk.init) }

    var writableDisks: [Disk] { disks.filter { !$0.isReadOnly && !$0.isEmpty && $0.device != "cdrom" } }

    // MARK: The shadow

    /// The definition of a running domain for its shadow: fit for another host, with the CPU that its guest sees. In libvirt's own XML for
    /// migrations that is the CPU which was asked for; the one that QEMU provides goes over beside it there (`qemuDomainDefFormatBufInternal`).
    init(forShadowOf handle: Domain) throws {
        let migratable = try DomainDefinition(xml: handle.xml(flags: [.secure, .migratable]))
        guard let live = try DomainDefinition(xml: handle.xml(flags: .secure)).elements("cpu").first, let old = migratable.elements("cpu").first,
              let copy = live.copy() as? XMLElement else {
            self = migratable
            return
        }
        old.detach()
        migratable.root.addChild(copy)
        try self.init(xml: migratable.root.xmlString)
    }

    /// The XML that the shadow is created from: the primary's, with its RAM in a shared memory file, waiting for its state.
    func shadowXML(_ disks: ReplicaLayout = ReplicaLayout()) throws -> String {
        guard let copy = try? XMLDocument(xmlString: xml), let root = copy.rootElement() else {
            throw ControlFailure("Libvirt's XML of the domain cannot be parsed")
        }
        root.removeAttribute(forName: "id")
        MemoryBacking.share(root)
        Self.dropRuntime(root)
        disks.apply(to: root)
        Self.dropIncoming(root)
        if let old = root.elements(forName: "qemu:commandline").first {
            Self.append(arguments: ["-incoming", "defer"], to: old)
        } else {
            let commandline = XMLElement(name: "qemu:commandline")
            Self.append(arguments: ["-incoming", "defer"], to: commandline)
            root.addChild(commandline)
        }
        if root.namespaces?.contains(where: { $0.name == "qemu" }) != true {
            if let namespace = XMLNode.namespace(withName: "qemu", stringValue: Self.qemuNamespace) as? XMLNode { root.addNamespace(namespace) }
        }
        return root.xmlString
    }

    /// A definition for the other host to keep: without the arguments that made the guest wait for its state here.
    func persistentXML(_ disks: ReplicaLayout = ReplicaLayout()) throws -> String {
        guard let copy = try? XMLDocument(xmlString: xml), let root = copy.rootElement() else {
            throw ControlFailure("Libvirt's XML of the domain cannot be parsed")
        }
        Self.dropIncoming(root)
        disks.apply(to: root)
        return root.xmlString
    }

    /// A guest that came by a hand-over has `-incoming defer` on its command line already.
    private static func dropIncoming(_ root: XMLElement) {
        for commandline in root.elements(forName: "qemu:commandline") {
            let arguments = commandline.elements(forName: "qemu:arg")
            for (index, argument) in arguments.enumerated() where argument.attribute(forName: "value")?.stringValue == "-incoming" {
                argument.detach()
                if index + 1 < arguments.count { arguments[index + 1].detach() }
            }
            if (commandline.children ?? []).allSatisfy({ $0.kind == .text }) { commandline.detach() }
        }
    }

    private static func append(arguments: [String], to commandline: XMLElement) {
        for argument in arguments {
            let element = XMLElement(name: "qemu:arg")
            if let attribute = XMLNode.attribute(withName: "value", stringValue: argument) as? XMLNode { element.addAttribute(attribute) }
            commandline.addChild(element)
        }
    }

    /// What libvirt shows of a running domain and must not be given to another: a block job of ours, names of host interfaces.
    private static func dropRuntime(_ root: XMLElement) {
        for disk in (try? root.nodes(forXPath: "devices/disk")) ?? [] {
            for mirror in (disk as? XMLElement)?.elements(forName: "mirror") ?? [] { mirror.detach() }
        }
    }
}
