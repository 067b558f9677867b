import FoundationXML

/// `<memoryBacking>`, and what else of a domain's XML says how QEMU gets its memory.
enum MemoryBacking {
    /// The guest's memory in memory files that are shared: that is how its pages can be written from outside. What else the element says
    /// (huge pages, `<locked/>`, `<nosharepages/>`, `<allocation/>`, `<discard/>`) stays.
    static func share(_ root: XMLElement) {
        let backing = root.elements(forName: "memoryBacking").first ?? root.add("memoryBacking")
        for name in ["source", "access"] { backing.elements(forName: name).forEach { $0.detach() } }
        backing.add("source").set("type", "memfd")
        backing.add("access").set("mode", "shared")
        // Said of one cell or device, it would win over the above.
        for case let cell as XMLElement in (try? root.nodes(forXPath: "cpu/numa/cell")) ?? [] { cell.removeAttribute(forName: "memAccess") }
        for case let device as XMLElement in (try? root.nodes(forXPath: "devices/memory")) ?? [] { device.removeAttribute(forName: "access") }
    }
}

extension DomainDefinition {
    /// `<allocation mode='immediate'/>`: what is set aside at the start is not to be given back.
    var isMemoryPreallocated: Bool { text("memoryBacking/allocation/@mode") == "immediate" }

    /// Memory on huge pages, by their size; 0: the host's usual one.
    var hugePages: [HugePagesNeed] {
        let pages = elements("memoryBacking/hugepages/page").map { page in
            (bytes: Self.bytes(page.attribute(forName: "size")?.stringValue, unit: page.attribute(forName: "unit")?.stringValue),
             nodes: page.attribute(forName: "nodeset")?.stringValue.map(NodeSet.init))
        }
        guard !elements("memoryBacking/hugepages").isEmpty else { return [] }
        let usual = pages.first { $0.nodes == nil }?.bytes ?? (pages.isEmpty ? 0 : nil)
        func size(node: Int?) -> UInt64? { pages.first { page in node.map { page.nodes?.contains($0) == true } ?? false }?.bytes ?? usual }
        var needs: [UInt64: UInt64] = [:]
        let cells = elements("cpu/numa/cell")
        for (index, cell) in cells.enumerated() {
            let node = cell.attribute(forName: "id")?.stringValue.flatMap { Int($0) } ?? index
            if let size = size(node: node) { needs[size, default: 0] += Self.bytes(cell.attribute(forName: "memory")?.stringValue, unit: cell.attribute(forName: "unit")?.stringValue) }
        }
        for device in elements("devices/memory") {
            let node = device.elements(forName: "target").first?.elements(forName: "node").first?.stringValue.flatMap { Int($0) }
            guard let size = size(node: node), let element = device.elements(forName: "target").first?.elements(forName: "size").first else { continue }
            needs[size, default: 0] += Self.bytes(element.stringValue, unit: element.attribute(forName: "unit")?.stringValue)
        }
        if cells.isEmpty, let size = size(node: nil) { needs[size, default: 0] += memoryBytes }
        return needs.sorted { $0.key < $1.key }.map { HugePagesNeed(pageBytes: $0.key, byteCount: $0.value) }
    }
}

/// Libvirt's way to write a set of NUMA nodes or CPUs: "0-3,^2,8".
struct NodeSet {
    private var included = Set<Int>()

    init(_ text: String) {
        for part in text.split(separator: ",") {
            let isExcluded = part.hasPrefix("^")
            let ends = part.drop(while: { $0 == "^" }).split(separator: "-").compactMap { Int($0.filter { $0 != " " }) }
            guard let first = ends.first, let last = ends.last, first <= last, last < 4096 else { continue }
            if isExcluded { included.subtract(first...last) } else { included.formUnion(first...last) }
        }
    }

    func contains(_ node: Int) -> Bool { included.contains(node) }
    var members: [Int] { included.sorted() }
}
