import Foundation

/// What QEMU's human monitor prints about memory; there is no QMP for it up to at least 10.0.
enum MonitorText {
    /// A line of `info ramblock`.
    struct Block: Equatable {
        var name: String
        var usedBytes: UInt64
        var totalBytes: UInt64
    }

    /// `info ramblock`: columns, of which newer releases have more, in any order. Names have no blanks, "4 KiB" is two words.
    ///
    ///                   Block Name    PSize              Offset               Used              Total
    ///                       pc.ram    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000
    static func blocks(_ text: String) -> [Block] {
        var columns: [Substring] = []
        return text.split(whereSeparator: \.isNewline).compactMap { line in
            let words = line.split(whereSeparator: \.isWhitespace)
            if words.first == "Block" {
                // "Block Name" is one column of one word, "PSize" one of two.
                columns = words.dropFirst().flatMap { $0 == "PSize" ? ["PSize", "unit"] : [$0] }
                return nil
            }
            guard let used = columns.firstIndex(of: "Used"), let total = columns.firstIndex(of: "Total"), words.count > max(used, total),
                  let usedBytes = number(words[used]), let totalBytes = number(words[total]) else { return nil }
            return Block(name: String(words[0]), usedBytes: usedBytes, totalBytes: totalBytes)
        }
    }

    /// A range of guest-physical memory that a RAM block backs.
    struct Range: Equatable {
        var block: String
        var address: UInt64
        /// Place within the block.
        var offset: UInt64
    }

    /// `info mtree -f`: of the view of all memory, the ranges that are RAM.
    ///
    ///     FlatView #1
    ///      AS "memory", root: system
    ///       0000000000100000-0000000001ffffff (prio 0, ram): ram-node0 @0000000000100000 KVM
    static func ranges(_ text: String) -> [Range] {
        var isMemory = false
        return text.split(whereSeparator: \.isNewline).compactMap { line in
            if line.hasPrefix("FlatView #") { isMemory = false }
            if line.hasPrefix(" AS \"memory\",") { isMemory = true }
            guard isMemory, let colon = line.range(of: ", ram): ") else { return nil }
            let words = line[colon.upperBound...].split(separator: " ")
            let address = line.drop(while: { $0 == " " }).prefix(while: { $0 != "-" })
            guard let name = words.first, let start = UInt64(address, radix: 16) else { return nil }
            let offset = words.first { $0.hasPrefix("@") }.map { UInt64($0.dropFirst(), radix: 16) } ?? 0
            return offset.map { Range(block: String(name), address: start, offset: $0) }
        }
    }

    /// `gpa2hva ADDRESS`: "Host virtual address for 0x2000000 (ram-node1) is 0x7ff023ffe000".
    static func hostAddress(_ text: String, of block: String) -> UInt64? {
        let words = text.split(whereSeparator: \.isWhitespace)
        guard words.contains(Substring("(\(block))")), let last = words.last else { return nil }
        return number(last)
    }

    private static func number(_ word: Substring) -> UInt64? {
        word.hasPrefix("0x") ? UInt64(word.dropFirst(2), radix: 16) : nil
    }
}

/// A line of /proc/PID/maps.
struct ProcessMapping: Equatable {
    var addresses: Range<UInt64>
    var offset: UInt64
    var inode: UInt64
    var path: String

    /// proc_pid_maps(5): "7ff023ffe000-7ff025ffe000 rw-s 00000000 00:01 18715    /memfd:memory-backend-memfd (deleted)".
    static func all(_ text: String) -> [ProcessMapping] {
        text.split(separator: "\n").compactMap { line in
            let words = line.split(separator: " ", maxSplits: 5, omittingEmptySubsequences: true)
            guard words.count >= 5, let offset = UInt64(words[2], radix: 16), let inode = UInt64(words[4]) else { return nil }
            let ends = words[0].split(separator: "-").compactMap { UInt64($0, radix: 16) }
            guard ends.count == 2, ends[0] < ends[1] else { return nil }
            return ProcessMapping(addresses: ends[0]..<ends[1], offset: offset, inode: inode,
                                  path: words.count > 5 ? words[5].trimmingCharacters(in: .whitespaces) : "")
        }
    }
}
