import ControlProtocol
import Foundation
import FoundationXML

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

    private func elements(_ path: String) -> [XMLElement] { (try? root.nodes(forXPath: path))?.compactMap { $0 as? XMLElement } ?? [] }
    private func text(_ path: String) -> String? { (try? root.nodes(forXPath: path))?.first?.stringValue }

    var name: String { text("name") ?? "" }
    var uuid: String { (text("uuid") ?? "").lowercased() }
    /// `kvm` or `qemu`.
    var type: String { root.attribute(forName: "type")?.stringValue ?? "" }
    var machine: String { text("os/type/@machine") ?? "" }
    var architecture: String { text("os/type/@arch") ?? "" }
    var emulator: String? { text("devices/emulator") }
    var virtualCPUs: Int { Int(text("vcpu")?.trimmingCharacters(in: .whitespacesAndNewlines) ?? "") ?? 1 }
    var memoryBytes: UInt64 {
        let unit: [String: UInt64] = ["b": 1, "bytes": 1, "KB": 1000, "k": 1024, "KiB": 1024, "MB": 1_000_000, "M": 1 << 20, "MiB": 1 << 20,
                                      "GB": 1_000_000_000, "G": 1 << 30, "GiB": 1 << 30, "TiB": 1 << 40]
        return (UInt64(text("memory")?.trimmingCharacters(in: .whitespacesAndNewlines) ?? "") ?? 0) * (unit[text("memory/@unit") ?? "KiB"] ?? 1024)
    }
    /// The CPU element, for comparison with another host; nil when the domain leaves it to QEMU.
    var cpuXML: String? { elements("cpu").first.map(\.xmlString) }

    var disks: [Disk] { elements("devices/disk").map(Disk.init) }

    var writableDisks: [Disk] { disks.filter { !$0.isReadOnly && !$0.isEmpty && $0.device != "cdrom" } }

    /// What cannot be replicated, one finding each.
    var obstacles: [Finding] {
        var found: [Finding] = []
        func refuse(_ check: String, _ paths: [String], _ what: String, _ advice: String) {
            let count = paths.reduce(0) { $0 + elements($1).count }
            if count > 0 { found.append(Finding(check, .failed, "\(what) (\(count))", advice: advice)) }
        }
        refuse("host-devices", ["devices/hostdev", "devices/interface[@type='hostdev']"], "The domain uses devices of its host (PCI, USB, SCSI or mediated passthrough)",
               "Their state cannot be captured: detach them, or use virtio devices")
        refuse("vhost-user", ["devices/interface[@type='vhostuser']", "devices/disk[@type='vhostuser']", "devices/interface[@type='vdpa']"],
               "The domain uses vhost-user or vDPA devices", "Their state lives outside QEMU: use virtio with the kernel's vhost or without")
        refuse("shared-folders", ["devices/filesystem"], "The domain shares folders of its host", "QEMU cannot migrate them: remove the <filesystem> elements")
        refuse("shared-memory-devices", ["devices/shmem"], "The domain has <shmem> devices", "Their memory is not part of the stream: remove them")
        refuse("memory-devices", ["devices/memory"], "The domain has memory devices (DIMM, NVDIMM, virtio-mem)", "Only one block of RAM is replicated so far: use <memory> alone")
        refuse("numa-cells", ["cpu/numa/cell[2]"], "The domain has several NUMA cells", "Only one block of RAM is replicated so far: use one cell")
        refuse("tpm", ["devices/tpm[backend/@type='emulator']", "devices/tpm[backend/@type='passthrough']"], "The domain has a TPM",
               "Its state is kept outside QEMU: remove the TPM")
        refuse("launch-security", ["launchSecurity"], "The guest's memory is encrypted", "It cannot be read from outside by design")
        refuse("hugepages", ["memoryBacking/hugepages"], "The domain's memory is on huge pages", "Not replicated so far: remove <hugepages/>")
        return found
    }

    // MARK: The shadow

    /// The XML that the shadow is created from: the primary's, with its RAM in a shared memory file, waiting for its state.
    func shadowXML(_ disks: ReplicaLayout = ReplicaLayout()) throws -> String {
        guard let copy = try? XMLDocument(xmlString: xml), let root = copy.rootElement() else {
            throw ControlFailure("Libvirt's XML of the domain cannot be parsed")
        }
        root.removeAttribute(forName: "id")
        Self.shareMemory(root)
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

    private static func child(_ parent: XMLElement, _ name: String, attribute: String, _ value: String) {
        for old in parent.elements(forName: name) { old.detach() }
        let element = XMLElement(name: name)
        if let node = XMLNode.attribute(withName: attribute, stringValue: value) as? XMLNode { element.addAttribute(node) }
        parent.addChild(element)
    }

    /// `<memoryBacking><source type='memfd'/><access mode='shared'/>`: that is how its pages can be written from outside.
    private static func shareMemory(_ root: XMLElement) {
        let backing = root.elements(forName: "memoryBacking").first ?? {
            let fresh = XMLElement(name: "memoryBacking")
            root.addChild(fresh)
            return fresh
        }()
        child(backing, "source", attribute: "type", "memfd")
        child(backing, "access", attribute: "mode", "shared")
    }

    /// What libvirt shows of a running domain and must not be given to another: a block job of ours, names of host interfaces.
    private static func dropRuntime(_ root: XMLElement) {
        for disk in (try? root.nodes(forXPath: "devices/disk")) ?? [] {
            for mirror in (disk as? XMLElement)?.elements(forName: "mirror") ?? [] { mirror.detach() }
        }
    }
}
