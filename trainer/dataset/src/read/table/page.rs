//! Pages of a parquet file, looked at before the library decodes them: it takes the counts in their headers at their word and
//! makes room for as many values.

use std::fs::File;

use parquet::bloom_filter::Sbbf;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;

/// A run of equal values, or of none, takes no bytes, so a page may count many: a million rows of a list with a key that is always
/// null. Beyond this a writer has made its row groups too large, or lies.
const MOST_VALUES: u32 = 16 << 20;

/// A file whose pages are looked at.
pub(super) struct Checked<'a>(pub &'a SerializedFileReader<File>);

impl FileReader for Checked<'_> {
    fn metadata(&self) -> &ParquetMetaData {
        self.0.metadata()
    }

    fn num_row_groups(&self) -> usize {
        self.0.num_row_groups()
    }

    fn get_row_group(&self, index: usize) -> Result<Box<dyn RowGroupReader + '_>> {
        Ok(Box::new(Group(self.0.get_row_group(index)?)))
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_file(projection, self)
    }
}

struct Group<'a>(Box<dyn RowGroupReader + 'a>);

impl RowGroupReader for Group<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.0.metadata()
    }

    fn num_columns(&self) -> usize {
        self.0.num_columns()
    }

    fn get_column_page_reader(&self, index: usize) -> Result<Box<dyn PageReader>> {
        Ok(Box::new(Pages(self.0.get_column_page_reader(index)?)))
    }

    fn get_column_bloom_filter(&self, index: usize) -> Option<&Sbbf> {
        self.0.get_column_bloom_filter(index)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}

struct Pages(Box<dyn PageReader>);

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Result<Page>> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        self.0.get_next_page()?.map(checked).transpose()
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.0.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.0.skip_next_page()
    }

    fn supports_deferred_dictionary(&self) -> bool {
        self.0.supports_deferred_dictionary()
    }

    fn take_deferred_dictionary(&mut self) -> Result<Option<Page>> {
        self.0.take_deferred_dictionary()?.map(checked).transpose()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.0.at_record_boundary()
    }
}

/// Every value of a dictionary stands in it.
fn checked(page: Page) -> Result<Page> {
    let (count, bytes) = (page.num_values(), page.buffer().len());
    let most = match page {
        Page::DictionaryPage { .. } => u32::try_from(bytes).unwrap_or(u32::MAX),
        Page::DataPage { .. } | Page::DataPageV2 { .. } => MOST_VALUES,
    };
    if count > most {
        let words = format!(
            "a page of {bytes} bytes counts {count} values, expected at most {most} (smaller row groups have smaller pages)"
        );
        return Err(ParquetError::General(words));
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::basic::Encoding;

    #[test]
    fn a_dictionary_of_more_values_than_bytes_is_no_dictionary() {
        let page = |num_values| Page::DictionaryPage {
            buf: vec![0; 8].into(),
            num_values,
            encoding: Encoding::PLAIN,
            is_sorted: false,
        };
        assert!(checked(page(8)).is_ok());
        let error = checked(page(i32::MAX as u32)).unwrap_err().to_string();
        assert!(error.contains("a page of 8 bytes counts 2147483647 values, expected at most 8"), "{error}");
    }
}
