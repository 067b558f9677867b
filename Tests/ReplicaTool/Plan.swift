import Foundation
import ReplicaStore

struct PlannedWrite {
    var extent: DiskExtent
    var bytes: [UInt8]
}

/// What happens in a run, and what the disks hold after each epoch.
struct Plan {
    enum Step {
        case sync(epoch: UInt64, [PlannedWrite])
        /// `abandoned`: prepared first and then given up, as when the memory side does not get the epoch.
        case epoch(UInt64, [PlannedWrite], abandoned: [PlannedWrite]?)
    }

    static let session = UUID(uuid: (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16))
    static let journalLimit = 96 << 10
    /// The last chunk of the first is a short one.
    static let disks = [ReplicaSet.Disk(index: 0, path: "disk0.raw", byteCount: 3 * 65536 + 12800),
                        ReplicaSet.Disk(index: 3, path: "disk3.raw", byteCount: 2 * 65536)]

    typealias Contents = [[UInt8]]
    static var blank: Contents { disks.map { [UInt8](repeating: 0xee, count: Int($0.byteCount)) } }

    private(set) var steps: [Step] = []
    /// After each epoch; 0: before everything.
    private(set) var after: [UInt64: Contents] = [:]
    /// After an abandoned epoch, had it come to be.
    private(set) var afterAbandoned: [UInt64: Contents] = [:]

    init(seed: UInt64, epochs: Int) {
        var generator = SeededGenerator(seed: seed)
        var contents = Self.blank
        after[0] = contents
        for number in 1...epochs {
            let epoch = UInt64(number)
            if number == 1 || number == epochs * 2 / 3 {
                let writes = Self.writes(6, &generator)
                steps.append(.sync(epoch: epoch, writes))
                Self.change(&contents, writes)
            } else {
                let abandoned = number % 4 == 0 ? Self.writes(3, &generator) : nil
                let writes = number % 3 == 0 ? [] : Self.writes(5, &generator)
                if let abandoned {
                    var other = contents
                    Self.change(&other, abandoned)
                    afterAbandoned[epoch] = other
                }
                steps.append(.epoch(epoch, writes, abandoned: abandoned))
                Self.change(&contents, writes)
            }
            after[epoch] = contents
        }
    }

    private static func writes(_ count: Int, _ generator: inout SeededGenerator) -> [PlannedWrite] {
        (0..<count).map { _ in
            let disk = disks[Int.random(in: 0..<disks.count, using: &generator)]
            let kinds: [DiskExtent.Kind] = [.data, .data, .data, .zero, .trim]
            let kind = kinds[Int.random(in: 0..<kinds.count, using: &generator)]
            let most = kind == .data && Int.random(in: 0..<6, using: &generator) > 0 ? 6000 : 80000
            let length = Int.random(in: 1...most, using: &generator)
            let offset = Int.random(in: 0...(Int(disk.byteCount) - length), using: &generator)
            let bytes = kind == .data ? (0..<length).map { _ in UInt8.random(in: 0...255, using: &generator) } : []
            return PlannedWrite(extent: DiskExtent(disk: disk.index, kind: kind, offset: UInt64(offset), length: length), bytes: bytes)
        }
    }

    static func change(_ contents: inout Contents, _ writes: [PlannedWrite]) {
        for write in writes {
            guard let place = disks.firstIndex(where: { $0.index == write.extent.disk }) else { continue }
            let range = Int(write.extent.offset)..<(Int(write.extent.offset) + write.extent.length)
            contents[place].replaceSubrange(range, with: write.bytes.isEmpty ? [UInt8](repeating: 0, count: range.count) : write.bytes)
        }
    }
}
