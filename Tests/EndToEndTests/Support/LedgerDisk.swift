import Foundation

/// What the ledger guest wrote to its disks, read from their raw images (Tests/Support/LedgerTool.swift). The guest should not run meanwhile.
struct LedgerDisk: Decodable {
    var image: String
    var ok: Bool
    /// Raised at each boot of the guest.
    var generation: Int
    /// Written since that boot.
    var records: Int
    var lastTick: Int?
    var problems: [String]

    private struct Report: Decodable {
        var ok: Bool
        var images: [LedgerDisk]
    }

    /// `tick`: the last record must be from this tick or one of the `within` ones before it. Several images are those of one guest, in the
    /// order of its disks, and must be from one moment.
    static func read(_ images: [String], tick: Int? = nil, within: Int = 25) throws -> [LedgerDisk] {
        let options = ["--together"] + (tick.map { ["--tick", "\($0)", "--within", "\(within)"] } ?? [])
        let result = try runCommand([try TwoHosts.guests.get() + "/ledger-tool", "disk"] + options + images, limit: 30)
        try require(result.status == 0 || result.status == 2, "ledger-tool disk: \(result.summary)")
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        return try decoder.decode(Report.self, from: Data(result.out.utf8)).images
    }

    /// The same; throws when anything is not as it must be.
    @discardableResult
    static func check(_ images: [String], tick: Int? = nil, within: Int = 25) throws -> [LedgerDisk] {
        let disks = try read(images, tick: tick, within: within)
        let problems = disks.flatMap { disk in disk.problems.map { "\(disk.image.suffix(40)): \($0)" } }
        try require(problems.isEmpty, "The guest's disks: " + problems.joined(separator: "\n"))
        return disks
    }

    /// From the next boot on the guest writes to a virtio disk made of this image.
    static func mark(_ image: String) throws {
        let result = try runCommand([try TwoHosts.guests.get() + "/ledger-tool", "mark", image], limit: 30)
        try require(result.succeeded, "ledger-tool mark: \(result.summary)")
    }
}
