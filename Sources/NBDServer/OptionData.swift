/// The data of an option, read from the front. `next` throws when the data ends early.
///
///     INFO, GO                 u32 length, export name, u16 count, count x u16 information
///     LIST_, SET_META_CONTEXT  u32 length, export name, u32 count, count x { u32 length, query }
struct OptionData {
    /// What is wrong with it, for the client to read.
    struct Malformed: Error {
        let message: String
    }

    private let bytes: UnsafeRawBufferPointer
    private var offset = 0

    init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

    private mutating func next<T: FixedWidthInteger>(_ what: String, as type: T.Type) throws(Malformed) -> T {
        let size = MemoryLayout<T>.size
        guard let base = bytes.baseAddress, bytes.count - offset >= size else { throw Malformed(message: "The option ends before \(what)") }
        defer { offset += size }
        return base.big(offset, as: T.self)
    }

    private mutating func nextString(_ what: String) throws(Malformed) -> String {
        let length = Int(try next("the length of \(what)", as: UInt32.self))
        guard length <= Wire.mostNameBytes else {
            throw Malformed(message: "The length of \(what) is \(length), the limit is \(Wire.mostNameBytes)")
        }
        guard bytes.count - offset >= length else { throw Malformed(message: "The option ends within \(what)") }
        defer { offset += length }
        return String(decoding: bytes[offset..<(offset + length)], as: UTF8.self)
    }

    private func end() throws(Malformed) {
        guard offset == bytes.count else { throw Malformed(message: "The option has \(bytes.count - offset) bytes too many") }
    }

    /// INFO, GO: the export, and what the client would like to know. Kinds that we do not know are left out.
    mutating func informationRequest() throws(Malformed) -> (export: String, wanted: [Information]) {
        let name = try nextString("the export's name")
        let count = Int(try next("the count of information requests", as: UInt16.self))
        guard bytes.count - offset == count * 2 else {
            throw Malformed(message: "The option announces \(count) information requests in \(bytes.count - offset) bytes")
        }
        var wanted: [Information] = []
        for _ in 0..<count {
            let number = try next("an information request", as: UInt16.self)
            if let kind = Information(rawValue: number), !wanted.contains(kind) { wanted.append(kind) }
        }
        return (name, wanted)
    }

    /// LIST_META_CONTEXT, SET_META_CONTEXT: the export, how many queries there are, and whether one of them is for
    /// `base:allocation` by its name or, `byNamespace`, by "base:".
    mutating func contextRequest(byNamespace: Bool) throws(Malformed) -> (export: String, queries: Int, allocation: Bool) {
        let name = try nextString("the export's name")
        let count = Int(try next("the count of queries", as: UInt32.self))
        // Each query has four bytes at least: a count that cannot be ends here, not after four billion turns.
        guard count <= (bytes.count - offset) / 4 else { throw Malformed(message: "The option announces \(count) queries, more than fit") }
        var allocation = false
        for _ in 0..<count {
            let query = try nextString("a query")
            if query == Wire.allocationContext || (byNamespace && query == "base:") { allocation = true }
        }
        try end()
        return (name, count, allocation)
    }
}
