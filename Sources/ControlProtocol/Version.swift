/// The product's version, as `--version` and `status` show it.
public enum ProductVersion {
    public static let text = "0.1.0"
    /// When that was released, as its manual pages show it.
    public static let date = "2026-11-21"
}
